"""The causal 3-D convolutional video autoencoder."""
