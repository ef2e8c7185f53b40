"""The command line: thin commands that hold no logic, imported only when they run."""
