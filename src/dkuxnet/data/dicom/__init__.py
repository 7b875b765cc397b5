"""DICOM in: a folder, a tree, a zip or a multi-frame file becomes the volume of one series. Only
headers until then.
"""
