"""What a store says of itself: places, manifest, entries, variants."""
