"""Small experts of the user's own, trained with the training loop."""
