"""From raw scans to batches: layouts of source folders, geometry, splits, prepared cases,
augmentation, loading.
"""
