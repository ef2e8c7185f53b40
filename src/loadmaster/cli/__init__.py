"""The command line: commands parse options and print, and import what they need when they run."""
