"""Questions in, training batches out: records, sources, prompts, rewards, packing."""
