"""Pre-training: everything decided before the first step, the training loop, and the records of a run."""
