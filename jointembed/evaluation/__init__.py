"""Honest numbers: embeddings in, named floats out."""
