"""Methods that train a group of graph neural networks together: one file a method."""
