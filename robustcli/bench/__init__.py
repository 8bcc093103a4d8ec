"""`robust bench`: what a step costs, as ratios of things measured in turn in one process."""
