"""How features lie on disk: format, codecs, write, read, verify."""
