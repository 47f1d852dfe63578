"""Build what DeepSpeed would otherwise compile at the first training step: `python -m launch.prebuild`

Its CPU collectives are a small C++ extension. It is built into the virtual environment, once, where g++ is at hand.
"""

from __future__ import annotations

import shutil

from workers.zero import extensions_folder


def main() -> None:
    import torch

    if torch.cuda.is_available():
        return
    import os

    os.environ |= {"TORCH_EXTENSIONS_DIR": str(extensions_folder()), "DS_ACCELERATOR": "cpu"}
    shutil.rmtree(extensions_folder(), ignore_errors=True)  # an interrupted build leaves a lock that would be waited for
    from deepspeed.comm.torch import build_shm_op

    if build_shm_op() is None:
        print("note: DeepSpeed's shared-memory collectives were not built; gloo will be used")


if __name__ == "__main__":
    main()
