"""DICOM: reading a series as a volume, and writing segmentations as DICOM SEG."""
