"""Signed requests of named receivers, their identities, and how a request configures a protection."""
