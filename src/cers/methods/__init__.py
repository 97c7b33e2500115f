"""Learning rules: one file per method."""
