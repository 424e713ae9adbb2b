"""Image sets, one file each."""
