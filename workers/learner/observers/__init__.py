"""Observers of the loss: step metrics, token records and digests."""
