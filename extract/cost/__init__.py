"""What an extraction will cost."""
