"""What is measured on videos: fidelity, perceptual and feature distances, intervals."""
