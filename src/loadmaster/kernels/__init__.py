"""Numerical kernels, each next to its plain reference. The plain forms run everywhere and define the result."""
