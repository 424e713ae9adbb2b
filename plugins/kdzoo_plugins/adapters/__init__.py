"""Feature adapters, one file each."""
