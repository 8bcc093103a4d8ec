"""The training loop: from a spec and its images to updates, checks and checkpoints."""
