"""Sealing: originals beside their public copy, encrypted for named recipients. Needs no torch."""
