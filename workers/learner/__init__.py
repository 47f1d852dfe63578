"""Learner ranks: DeepSpeed ZeRO, adapters and checkpoints."""
