"""Image files: read, cut and changed, with their masks and condition images."""
