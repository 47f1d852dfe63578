"""Hugging Face model folders, checked without loading weights, and the texts of their tokens."""
