"""Which tasks of reasoning-gym suit a small model: `python -m benchmarks.tasks`."""
