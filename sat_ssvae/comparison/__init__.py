"""Does diffusion converge faster on one latent space than on another: transformer, training, comparison."""
