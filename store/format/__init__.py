"""How a store describes itself: layout, manifest, entries, variants."""
