"""Experts of one's own, trained by the loop of training."""
