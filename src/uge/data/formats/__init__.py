"""Formats of image sources: one format, one file. ``uge.data.sources`` has the table of them."""
