"""Labelled data: the sets we know by name, readers of official formats, and batches on the device."""
