"""Chains of thought: the four-aspect rationale, its audit and its writers."""
