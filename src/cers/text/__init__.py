"""Frozen text encoders behind one protocol, and the embedding cache."""
