"""All comparing of runs: a grid of trainings, its figures, and pages of them."""
