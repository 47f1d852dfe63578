"""Observers of the loss: everything that is measured or recorded of a token, apart from the mathematics."""
