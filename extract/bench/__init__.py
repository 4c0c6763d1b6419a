"""What extraction costs beside its experts."""
