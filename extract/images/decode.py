"""One image file to 8-bit RGB, or the reason why not."""
