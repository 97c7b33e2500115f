"""Metrics per case, their statistics and the tables that compare runs."""
