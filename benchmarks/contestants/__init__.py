"""The training loops that ``benchmarks/step.py`` compares, one file each, all on the same job."""
