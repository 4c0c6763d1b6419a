"""Teachers that are made from a store, and single networks that learn from LR alone."""
