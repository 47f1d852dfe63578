"""LoRA (arXiv 2106.09685) by peft: a projection's weight W is frozen, two narrow matrices beside it are trained.

Rollout engines, teacher and model folders get the merged weight, W + scale B A: only the learners know of adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter

from demopsd_dist.config import ModelConfig
from demopsd_dist.util.errors import ConfigError
from workers.weights.tensor_groups import NamedTensors


@dataclass(frozen=True)
class Adapter:
    """Adapter of one weight (O, I): A is (R, I), and B, zero at first, is (O, R)."""

    a_RI: Parameter
    b_OR: Parameter
    scale: float

    @property
    def parts(self) -> tuple[Parameter, Parameter]:
        """Both matrices."""
        return self.a_RI, self.b_OR

    def merged(self, weight_OI: Tensor) -> Tensor:
        """Add the adapter to its weight in float32, then round to the weight's own format."""
        with torch.no_grad():
            return torch.addmm(weight_OI.float(), self.b_OR.float(), self.a_RI.float(), alpha=self.scale).to(weight_OI)


Adapters = Mapping[str, Adapter]  # by the name of the weight
_NAME = "default"  # peft's name for the only set of adapters


def add_adapters(model: Any, settings: ModelConfig) -> Adapters:
    """Add adapters to a transformers model, in place, and freeze its own weights.

    Returns:
        Adapters by the name of their weight; empty, with the model unchanged, if `model.lora_rank` is 0.

    Raises:
        ConfigError: the model has no linear layers; a name in `model.lora_targets` matches none of them, or the head;
            or peft cannot adapt one, or would adapt something else with it.
    """
    if not settings.lora_rank:
        return {}
    from peft import inject_adapter_in_model
    from peft.tuners.lora import Linear

    targets = settings.lora_targets or linear_layers(model)
    _check_targets(model, settings.lora_targets)
    try:
        inject_adapter_in_model(_peft_config(settings, targets), model, adapter_name=_NAME)
    except ValueError as error:
        raise ConfigError(
            f"model.lora_targets: peft cannot adapt {', '.join(targets)} of {type(model).__name__}: "
            f"{' '.join(str(error).split())} Name other layers in model.lora_targets, or set model.lora_rank=0."
        ) from None
    adapters = {
        f"{name}.weight": _adapter_of(module) for name, module in model.named_modules() if isinstance(module, Linear)
    }
    known = {id(part) for adapter in adapters.values() for part in adapter.parts}
    if others := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in known]:
        raise ConfigError(
            f"model.lora_targets: peft adds {len(others)} matrices to {type(model).__name__} that cannot be merged "
            f"into a weight, first {others[0]}. Name other layers in model.lora_targets, or set model.lora_rank=0."
        )
    return adapters


def _adapter_of(module: Any) -> Adapter:
    """Adapter of one of peft's layers."""
    return Adapter(module.lora_A[_NAME].weight, module.lora_B[_NAME].weight, float(module.scaling[_NAME]))


def linear_layers(model: Any) -> list[str]:
    """Last parts of the names of the linear layers that can be adapted: all except the head, and except those that
    share their name with experts that are fused into one tensor. peft would adapt the experts with them (with its
    "all-linear" too), which cannot be merged in the same way.

    Raises:
        ConfigError: there are none.
    """
    head = model.get_output_embeddings()
    names = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}
    last_parts = {name.rpartition(".")[2] for name in names}
    if usable := sorted(last_parts - _fused_with_experts(model, last_parts)):
        return usable
    raise ConfigError(
        f"model.lora_rank: {type(model).__name__} has no linear layers that LoRA can adapt and merge; its weights are "
        "in layers of other kinds. Set model.lora_rank=0."
    )


def _fused_with_experts(model: Any, names: set[str]) -> set[str]:
    """Names among these that peft takes for those of fused experts."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    pairs = {"gate_proj", "up_proj", "w1", "w3"}  # peft refuses one without its partner
    config = LoraConfig(target_modules=sorted(names | pairs))
    convert_peft_config_for_transformers(config, model, None)
    return names - set(config.target_modules or ())


def _peft_config(settings: ModelConfig, targets: Sequence[str]) -> Any:
    """peft's configuration, derived from our settings."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # a fraction is fine, it is only divided
        target_modules=list(targets),
        lora_dropout=0.0,  # rollouts, support and loss must see the same student
        base_model_name_or_path=settings.path,
        task_type="CAUSAL_LM",
    )


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    """Refuse a target that matches nothing, which peft would ignore silently, the head, or fused experts."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    head = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    usable = linear_layers(model)
    for target in targets:
        matches = {name for name in linear if name == target or name.endswith(f".{target}")}
        if not matches or matches & head:
            problem = "is the head, which is not adapted," if matches else "fits no linear layer"
        elif target.rpartition(".")[2] not in usable:
            problem = "fits experts too, which are fused into one tensor and cannot be merged, in a layer"
        else:
            continue
        raise ConfigError(
            f"model.lora_targets: {target} {problem} of {type(model).__name__}. Its linear layers are "
            f"{', '.join(usable)}; an empty list takes them all."
        )


def base_tensors(named: NamedTensors) -> list[tuple[str, Tensor]]:
    """Select the model's own tensors, under the names that they have without adapters."""
    return [(name.replace(".base_layer.", "."), tensor) for name, tensor in named if ".lora_" not in name]


def merge_adapters(tensors: NamedTensors, adapters: Adapters) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights with their adapters merged, one at a time."""
    for name, tensor in tensors:
        yield name, adapters[name].merged(tensor) if name in adapters else tensor


def save_adapters(folder: Path, tensors: Mapping[str, Tensor], settings: ModelConfig) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained(model, folder)` reads.

    Args:
        tensors: by their names in the model that `add_adapters` has changed.
    """
    folder.mkdir()
    adapted = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in tensors})
    config = _peft_config(settings, settings.lora_targets or adapted)
    config.inference_mode = True
    config.save_pretrained(folder)
    named = {f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": tensor for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
