"""Bundled backends, each found through its entry point like any other plugin."""
