"""Matrix of architectures: which models train, and which are refused before the start."""
