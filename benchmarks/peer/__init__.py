"""One step beside TRL's SDPO trainer on this machine: `python -m benchmarks.peer`."""
