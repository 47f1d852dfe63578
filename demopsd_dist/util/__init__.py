"""Errors, printable text, a digest of the code, and a parent-death signal."""
