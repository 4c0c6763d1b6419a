"""The demo and its photographs."""
