"""Studies: Optuna over the keys of a spec."""
