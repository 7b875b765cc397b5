"""A run on disk: its folder, checkpoints, states and events."""
