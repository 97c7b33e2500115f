"""What a step, a search and an input cost on this machine, beside the authors' way of doing the same."""
