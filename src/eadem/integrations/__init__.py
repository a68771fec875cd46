"""Other libraries that move, split or save a model: one file for each, imported on use."""
