"""Clips encoded to latents on disk."""
