"""DICOM in: the volume of one series from a folder, a tree, a zip or a multi-frame file.

Only headers are read until the series is known to be an even stack.
"""
