"""From files to batches: sources, decoding, views, points, regions, the loader."""
