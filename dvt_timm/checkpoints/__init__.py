"""Heads and models as files."""
