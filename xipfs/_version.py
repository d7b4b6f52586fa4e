"""The version of the package; the image format has a version of its own (docs/FORMAT.md)."""

__version__ = "0.1.0"
