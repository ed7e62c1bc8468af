"""Every video autoencoder behind one interface."""
