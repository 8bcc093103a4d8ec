"""Everything about the weights: updates, schedules, perturbations, regularizers, averages."""
