"""Everything about the weights: updates, schedules, perturbations, regularisers, averages."""
