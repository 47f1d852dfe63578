"""A user's own objective: `method=my_package.MyMethod`.

Unlike an own reward it is imported into the driver and every learner rank, since its gradient is taken there. On
several nodes the module must be importable on each.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from demopsd_dist.config.method_settings import OwnConfig, WeightSource
from demopsd_dist.util.errors import ConfigError, kind_and_message

if TYPE_CHECKING:
    from demopsd_dist.objective import Objective

CONTRACT = "a class whose objects map TokenViews to a TokenLoss (docs/methods.md)"


def own_objective(settings: OwnConfig) -> Objective:
    """Import the class at `own.objective` and construct it with `own.settings`.

    Raises:
        ConfigError: the path leads nowhere, the module cannot be imported, or the class refuses the settings.
    """
    path = settings.objective or ""
    module_name, _, name = path.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"method={path}: there is no module {error.name}. Start the command in its folder, add the folder to "
                "PYTHONPATH, or install it."
            ) from None
        raise ConfigError(f"method={path}: importing it failed: {kind_and_message(error)}") from None
    except AttributeError:
        raise ConfigError(f"method={path}: {module_name} has no {name}. It must be {CONTRACT}.") from None
    except Exception as error:
        raise ConfigError(f"method={path}: importing it failed: {kind_and_message(error)}") from None
    if not callable(found):
        raise ConfigError(f"method={path} is {type(found).__name__}. It must be {CONTRACT}.")
    try:
        return found(**settings.settings)
    except Exception as error:
        given = ", ".join(settings.settings) or "no settings"
        raise ConfigError(
            f"method={path} cannot be made with own.settings ({given}): {kind_and_message(error)}"
        ) from None


def check_own_objective(settings: OwnConfig) -> None:
    """Import the objective and try it on random tokens.

    Raises:
        ConfigError: it cannot be imported or made, or breaks the contract (`objective_contract.py`).
    """
    from demopsd_dist.objective_contract import contract_fault

    objective = own_objective(settings)
    if not callable(objective):
        raise ConfigError(f"method={settings.objective} makes a {type(objective).__name__}. It must be {CONTRACT}.")
    has_reference = settings.reference not in (None, WeightSource.live)
    fault = contract_fault(objective, has_reference=has_reference, has_tail=settings.top_k is not None)
    if fault and fault.startswith("it raises") and "None" in fault and not has_reference:
        raise ConfigError(
            f"method={settings.objective}: {fault}. views.reference_logp_BTA is None unless own.reference is ema or "
            "frozen: set it, or handle None."
        )
    if fault:
        raise ConfigError(f"method={settings.objective}: {fault}. It must be {CONTRACT}.")
