"""The method: local correlation, latent masking, and the spectra that they shape. Pure functions in float32."""
