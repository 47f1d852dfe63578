"""Compilation of DeepSpeed's CPU extension before the first run: `python -m launch.prebuild` (part of `make setup`)

A run would otherwise compile it at its first step. The result is stored in the virtual environment.
"""

from __future__ import annotations

from workers.learner.zero import build_extensions


def main() -> None:
    import torch

    if not torch.cuda.is_available() and not build_extensions():
        print("note: DeepSpeed's CPU extension was not built; training runs without it")


if __name__ == "__main__":
    main()
