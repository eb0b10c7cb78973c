"""Datasets: reading files, checks, the store, harvest, packing."""

KEEP_SIZE = 256  # pixels of the short side of the copies
KEPT, REJECTED = "kept", "rejected"  # the status of an item
