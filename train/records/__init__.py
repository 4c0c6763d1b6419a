"""What a run keeps in its folder: configuration, checkpoints, log, and which images it saw."""
