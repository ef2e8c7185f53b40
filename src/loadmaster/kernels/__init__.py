"""Numerical kernels, each beside its plain reference. The plain forms run everywhere and define the result."""
