"""Sealed originals, their recipients, and signatures of owners; no torch."""
