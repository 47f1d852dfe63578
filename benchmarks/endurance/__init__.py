"""Growth of memory and files over a thousand steps of a real run."""
