"""Training of the autoencoder: losses, the DeepSpeed engine, and the loop."""
