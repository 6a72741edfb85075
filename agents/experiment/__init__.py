"""What runs, comparisons and their results need beside the agents: launching, checkpoints, grids, statistics, reports."""
