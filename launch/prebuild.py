"""Compile what a run would otherwise compile at its first step: `python -m launch.prebuild` (part of `make setup`)

The result lies in the virtual environment.
"""

from __future__ import annotations

from workers.learner.zero import build_extensions


def main() -> None:
    import torch

    if not torch.cuda.is_available() and not build_extensions():
        print("note: DeepSpeed's CPU extension was not built; it goes without")


if __name__ == "__main__":
    main()
