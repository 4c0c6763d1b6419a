"""Files on a local disk: maps, durable renames, locks and leases."""
