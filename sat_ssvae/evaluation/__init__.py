"""Scores of videos: reconstruction quality, features of clips and distances between sets of them."""
