"""What loading and a step cost."""
