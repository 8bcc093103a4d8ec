"""`robust bench`: cost of steps and attacks, as ratios of times that are measured in turn in one process."""
