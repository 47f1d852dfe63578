"""Measurements of a run beside its training: leakage of solutions, and distance to the initial model."""
