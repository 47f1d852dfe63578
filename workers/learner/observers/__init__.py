"""Observers of the loss: measurements and records of tokens, apart from the loss itself."""
