"""Image files: what their pixels are, and whether they are sound."""
