"""Studies: a grid of runs, trained and scored as far as it is not there yet, and one table of them."""
