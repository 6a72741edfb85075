"""Models: where they compute, how checkpoints are loaded, how students are built."""
