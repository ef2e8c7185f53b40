"""Loading onto GPUs: windows of files through page-locked memory to devices. Begins in `loadmaster.loader.cuda.load`."""
