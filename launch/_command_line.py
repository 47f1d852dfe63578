"""What the commands of this room share: exit codes, and what this machine has."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from demopsd_dist.util.errors import DemoPSDError


def exit_code_of(work: Callable[[], int]) -> int:
    """Do it. 2 for wrong input, 130 when interrupted, 1 for any other failure; one line for an error of ours."""
    try:
        return work()
    except DemoPSDError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever reads what is said has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1


def count_gpus() -> int:
    """NVIDIA devices that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
