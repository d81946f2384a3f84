"""Placeholder of the cli package."""
