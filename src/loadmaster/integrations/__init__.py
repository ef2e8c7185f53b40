"""Other engines that load with this package. Each has a package of its own, and is imported only by itself."""
