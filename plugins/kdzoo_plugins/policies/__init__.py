"""Class policies, one file each."""
