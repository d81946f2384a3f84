"""Placeholder of the receipt package."""
