"""Observers, one file each."""
