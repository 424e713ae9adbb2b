"""What a plugin may add to kdzoo: contracts, base classes, hooks, and the registry of all found."""
