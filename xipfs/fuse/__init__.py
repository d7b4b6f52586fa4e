"""FUSE."""
