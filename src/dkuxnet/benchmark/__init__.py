"""Comparing runs: a grid of trainings, its statistics, tables and pages."""
