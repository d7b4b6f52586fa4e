"""Epoch loop."""
