"""From files to cases and batches."""
