"""Bundled plugins; a new file here is discovered at once."""
