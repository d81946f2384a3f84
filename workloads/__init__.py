"""Bundled kinds of workload, each found through its entry point like any other plugin."""
