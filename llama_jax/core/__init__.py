"""Arrays, batches, trees, meshes, processes, run directories, metrics. Knows no model and no data."""
