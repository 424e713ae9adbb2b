"""How a run goes on: epochs, evaluation, checkpoints, and everything in the run directory."""
