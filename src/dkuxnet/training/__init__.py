"""From a prepared set and settings to a run. Read `experiment.py` first."""
