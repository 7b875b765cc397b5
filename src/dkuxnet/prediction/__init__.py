"""From a run and a scan to its segmentation."""
