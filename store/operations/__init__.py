"""What is done to whole stores: verify, merge, convert, info, pictures."""
