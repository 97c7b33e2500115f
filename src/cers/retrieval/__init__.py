"""The knowledge pool and the two-stage search over it."""
