"""Stands in for CogVideoX's: patched, that is, it asks the first stage for its spatial_factor."""
