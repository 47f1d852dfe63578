"""Entry point of the command `demopsd`, also as `python -m demopsd_dist`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from demopsd_dist.util.errors import DemoPSDError
from demopsd_dist.util.rooms import room_module


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line from any folder; the exit code.

    As with `python -m`, modules of the working folder can be imported, for rewards of the user's own.
    """
    if not sys.flags.safe_path and os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        front_door = room_module("launch.__main__")
    except DemoPSDError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return front_door.main(argv)


if __name__ == "__main__":
    sys.exit(main())
