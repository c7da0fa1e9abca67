"""Parts of one paper in the model of another."""
