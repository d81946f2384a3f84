"""Placeholder of the supervisor package."""
