"""Images through the fusion."""
