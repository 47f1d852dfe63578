"""The run folder: metrics, ledger, checkpoints, samples and replay batches of one run."""
