"""Checkpoints of weights and moments, and the export of the model folder."""
