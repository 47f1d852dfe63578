"""Compilation of DeepSpeed's CPU extension before the first run: `python -m launch.prebuild` (part of `make setup`)

A run would otherwise compile it at its first step. The result is stored in the virtual environment. Exit code 0, also
where it cannot be built: training runs without it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch._command_line import command_parser, exit_code_of


def main(argv: Sequence[str] | None = None) -> int:
    command_parser("prebuild", __doc__).parse_args(argv)
    return exit_code_of(build)


def build() -> int:
    """Compile the extension, unless there is a GPU; the exit code."""
    import torch

    from workers.learner.extensions import ensure_extensions, extensions_folder

    if not torch.cuda.is_available() and not ensure_extensions(extensions_folder(), print):
        print("note: DeepSpeed's CPU extension was not built; training runs without it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
