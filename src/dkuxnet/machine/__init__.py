"""Disk, memory, processes and devices."""
