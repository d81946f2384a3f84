"""What the work may import: shipped apart from the supervisor, and put on the path of the work."""
