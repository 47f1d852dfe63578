"""Completeness of a model folder: every tensor of the model is in its files, and every tensor of its files is in the
model. Only the headers of the files are read.

transformers fills a missing tensor with random numbers and drops one that it does not know, with a warning only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demopsd_dist.util.errors import ConfigError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INDEX = "model.safetensors.index.json"


def check_whole_model(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check the files of a folder against the model of its config.json, and the model against its tokenizer.

    Raises:
        ConfigError: a file is missing or damaged; the weights are quantized; a tensor is missing, unknown or of another
            shape; or the embedding has fewer rows than the tokenizer has ids.
    """
    check_not_quantized(folder)
    check_shards(folder)
    check_rows(folder, model_without_weights(folder), tokenizer)


def check_not_quantized(folder: Path) -> None:
    """Check that the folder's weights are not quantized.

    Raises:
        ConfigError: its config.json says that they are.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if method := settings.get("quantization_config"):
        kind = method.get("quant_method", "some method") if isinstance(method, dict) else method
        raise ConfigError(
            f"model.path={folder} has weights quantized by {kind} (quantization_config in its config.json), which "
            "cannot be trained. Give a folder with float32 or bfloat16 weights."
        )


def check_shards(folder: Path) -> None:
    """Check that all files that the index of the weights names are there.

    Raises:
        ConfigError: a file is missing, or the index is not readable.
    """
    index = folder / INDEX
    if not index.is_file():
        return
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{index} is not an index of weights; download or save the model again.") from None
    if missing := [name for name in named if not (folder / name).is_file()]:
        raise ConfigError(
            f"model.path={folder} lacks {len(missing)} of the {len(named)} files that {INDEX} names, first "
            f"{missing[0]}. Download the model again."
        )


def model_without_weights(folder: Path) -> PreTrainedModel:
    """Build the model of a folder on torch's meta device, which has shapes and no data.

    Raises:
        ConfigError: the folder's weights are damaged or not whole.
    """
    from transformers import AutoModelForCausalLM

    with _quiet():
        try:
            model, loaded = AutoModelForCausalLM.from_pretrained(
                folder,
                device_map="meta",
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the answer, and refused below
            )
        except Exception as error:
            reason = _unlike_its_config(folder) or " ".join(str(error).split())
            raise ConfigError(f"model.path={folder}: transformers cannot load the model: {reason}") from None
    refuse_other_tensors(folder, model, loaded)
    return model


def refuse_other_tensors(folder: Path, model: PreTrainedModel, loaded: Mapping[str, Any]) -> None:
    """Check the answer of `from_pretrained(output_loading_info=True, ignore_mismatched_sizes=True)`.

    Unknown tensors that transformers lists as harmless for the model, such as the inverse frequencies that old
    checkpoints store, are not in that answer.

    Raises:
        ConfigError: tensors are missing, unknown or of another shape.
    """
    name = type(model).__name__
    if mismatched := sorted(loaded["mismatched_keys"]):
        tensor, in_file, in_model = mismatched[0]
        raise ConfigError(
            f"model.path={folder}: {_tensors(mismatched)} of another shape than in {name} of its config.json, first "
            f"{tensor}: {list(in_file)} in the files, {list(in_model)} in the model. Use the config.json that belongs "
            "to the weights."
        )
    if missing := sorted(loaded["missing_keys"]):
        raise ConfigError(
            f"model.path={folder} lacks {_tensors(missing)} of {name}, first {missing[0]}; they would be random. "
            "Save or download the whole model again."
        )
    if unexpected := sorted(loaded["unexpected_keys"]):
        raise ConfigError(
            f"model.path={folder} has {_tensors(unexpected)} that {name} does not use, first {unexpected[0]}; the "
            "student would be another model. Use the config.json that belongs to the weights, or remove the tensors."
        )
    if errors := [*loaded.get("error_msgs", ()), *loaded.get("conversion_errors", ())]:
        raise ConfigError(f"model.path={folder}: {_tensors(errors)} cannot be loaded, first: {errors[0]}")


def _unlike_its_config(folder: Path) -> str | None:
    """Difference between the tensors of the folder's files and those of a new model of its config.json, in words; None
    where there is none, or where no such model can be made. For folders that transformers cannot load: where it joins
    the tensors of several experts, it does not say which of them is missing."""
    try:
        wanted, found = _shapes_of_new_model(folder), shapes_in_files(folder)
    except Exception:
        return None
    if missing := sorted(wanted.keys() - found.keys()):
        return f"{len(missing)} of {len(wanted)} tensors are missing, first {missing[0]}. Download the model again."
    other = sorted(name for name in wanted if wanted[name] != found[name])
    if not other:
        return None
    return (
        f"{len(other)} of {len(wanted)} tensors have other shapes than its config.json says, first {other[0]}: "
        f"{found[other[0]]} in the files, {wanted[other[0]]} in the model. Use the config.json of the weights."
    )


def _shapes_of_new_model(folder: Path) -> dict[str, list[int]]:
    """Shapes by the names that a new model of the folder's config.json would be saved with."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).to("meta")
    tied = model.all_tied_weights_keys
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return {name: list(tensor.shape) for name, tensor in revert_weight_conversion(model, tensors).items()}


LFS_POINTER = b"version https://git-lfs"  # what Git leaves in place of a file


def shapes_in_files(folder: Path) -> dict[str, list[int]]:
    """Shapes by name in all files of weights.

    Raises:
        ConfigError: a file is no safetensors file, such as the pointer that Git leaves without LFS.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            reason = one_line(str(error))
            raise ConfigError(f"{path} is no readable safetensors file ({reason}). {_fix(path)}") from None
    return shapes


def _fix(path: Path) -> str:
    """Sentence about how to get a file of weights that cannot be read."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        is_pointer = False
    if is_pointer:
        return (
            "It is a pointer of Git LFS. Run `git lfs pull` in that folder, or `hf download NAME --local-dir FOLDER`."
        )
    return "Download the model again."


def parameters_in_files(folder: Path) -> int:
    """Number of parameters in all files of weights."""
    return sum(math.prod(shape) for shape in shapes_in_files(folder).values())


def _tensors(names: Collection[object]) -> str:
    """Number of tensors, in words."""
    return f"{len(names)} tensor{'s'[: len(names) != 1]}"


def check_rows(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that each token id has a row of the embedding. More rows than ids are common, fewer are not usable.

    Raises:
        ConfigError: there are fewer rows than ids.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    if rows < ids:
        raise ConfigError(
            f"model.path={folder}: its tokenizer has {ids} token ids, but its embedding only {rows} rows. Call "
            f"resize_token_embeddings({ids}) on the model and save it, or use the tokenizer that belongs to it."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off the progress bar and the warnings of transformers while it loads."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
