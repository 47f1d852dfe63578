"""Search for tasks of reasoning-gym that suit a small model: `python -m benchmarks.tasks`."""
