"""Rewards: built-in comparisons of answers, and user functions in a process of their own."""
