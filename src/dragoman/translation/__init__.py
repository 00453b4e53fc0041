"""Turning sources into translations."""
