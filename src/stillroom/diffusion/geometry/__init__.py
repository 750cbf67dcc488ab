"""The geometry of sampling trajectories: metrics, projections, shapes and what they say about a model."""
