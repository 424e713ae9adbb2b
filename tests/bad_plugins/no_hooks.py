"""Bad: adds nothing at all."""
