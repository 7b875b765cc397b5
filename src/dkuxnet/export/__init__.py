"""What leaves the house: models and segmentations in the formats of others."""
