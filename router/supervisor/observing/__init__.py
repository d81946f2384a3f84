"""What the supervisor sees of a run: before user code, beside it, and after its end."""
