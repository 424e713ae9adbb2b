"""Images as the training step sees them: split, held as tensors, augmented, in a seeded order."""
