"""From scan files to a prepared set: formats, layouts, geometry, checks, splits, preparation."""
