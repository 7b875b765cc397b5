"""A finished model in formats that other programs read."""
