"""What one step does: run both networks, weigh the losses, keep the teaching curves."""
