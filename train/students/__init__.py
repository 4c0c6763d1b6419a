"""Teachers that are made from a store, and single networks that only see LR."""
