"""Teacher workers: EMA weights that score responses with and without the solution."""
