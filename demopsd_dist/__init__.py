"""DemoPSD: disagreement-modulated policy self-distillation (arXiv 2607.02502), distributed.

For use from Python, `demopsd_loss` is the loss alone, from three logits tensors, and `train` a whole run:

    from demopsd_dist import demopsd_loss, train

Names are imported when they are first used: importing the package alone imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demopsd_dist.from_python import FinishedRun, train
    from demopsd_dist.objective import DemoPSDLoss, demopsd_loss

__version__ = "0.1.0"
__all__ = ["DemoPSDLoss", "FinishedRun", "demopsd_loss", "train"]

_HOMES = {
    "DemoPSDLoss": "objective",
    "demopsd_loss": "objective",
    "FinishedRun": "from_python",
    "train": "from_python",
}
"""Module of each public name."""


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Names for completion, with those that are not imported yet."""
    return sorted({*globals(), *__all__})
