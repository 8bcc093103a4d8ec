"""Files on disk: checkpoints, run folders, atomic writes."""
