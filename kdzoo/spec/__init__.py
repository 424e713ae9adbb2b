"""What a run is: its spec, read from YAML with positions, checked, and filled with defaults."""
