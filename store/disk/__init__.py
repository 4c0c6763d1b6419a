"""Files of a local disk: maps, renames that last, locks and leases."""
