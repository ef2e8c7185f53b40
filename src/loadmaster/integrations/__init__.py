"""Other engines that load with this package, one sub-package each, and the choice of an engine (`engines`)."""
