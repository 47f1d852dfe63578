"""Helpers common to the commands: exit codes and the number of GPUs."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from demopsd_dist.util.errors import DemoPSDError


def exit_code_of(work: Callable[[], int]) -> int:
    """Call `work` and return its exit code; for errors 2 for wrong input, 130 when interrupted, 1 for any other
    failure.

    An error of this project is printed as one line, any other with its traceback."""
    try:
        return work()
    except DemoPSDError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1


def user_path(text: str) -> Path:
    """A path of the command line, with `~` expanded where the shell did not, as in `--out=~/page.html`."""
    return Path(os.path.expanduser(text))


def count_gpus() -> int:
    """Number of NVIDIA devices that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
