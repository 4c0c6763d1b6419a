"""Methods beside each other, scored."""
