"""Checks of a user's data before a run: own answers, and questions that are legal and hardly meant."""
