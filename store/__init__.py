"""The feature store on disk: format, codecs, writing, reading, verifying."""
