"""Profiles of a step: the timeline of all processes, and the operations of torch in each."""
