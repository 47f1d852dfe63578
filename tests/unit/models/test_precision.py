"""Choice of the precision by size and hardware; bounds that belong to each; unchanged values of a user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from demopsd_dist.config import Config, LogpBounds, Precision, load, logp_bounds, teacher_precision, to_yaml
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.models.precision import (
    LEAST_CAPABILITY,
    SMALL_MODEL_PARAMETERS,
    MatrixUnits,
    choose_precision,
    lowest_capability,
    resolve_precision,
)
from demopsd_dist.util.errors import ConfigError

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
LARGE = 135_000_000
AMX, AVX512, NEITHER = MatrixUnits("AMX", None), MatrixUnits("AVX512-BF16", None), MatrixUnits(None, None)
ALL_ON_GPU = ["rollout.gpus_per_worker=1", "teacher.gpus_per_worker=1", "learner.gpus_per_worker=1"]


def config_of(*words: str) -> Config:
    return load(DEMO, ["model.path=some/folder", *words])


@pytest.mark.parametrize(
    ("words", "parameters", "units", "chosen", "reason"),
    [
        ([], LARGE, AMX, Precision.bfloat16, "the CPU has AMX"),
        ([], LARGE, AVX512, Precision.bfloat16, "the CPU has AVX512-BF16"),
        ([], LARGE, NEITHER, Precision.float32, "neither AMX nor AVX512-BF16"),
        ([], SMALL_MODEL_PARAMETERS, AMX, Precision.bfloat16, "AMX"),
        ([], SMALL_MODEL_PARAMETERS - 1, AMX, Precision.float32, "50.00 million parameters; bfloat16 is taken from 50"),
        (["learner.zero_stage=0"], LARGE, AMX, Precision.float32, "learner.zero_stage=0"),
        (ALL_ON_GPU, LARGE, MatrixUnits(None, LEAST_CAPABILITY), Precision.bfloat16, "GPUs"),
        (ALL_ON_GPU, LARGE, MatrixUnits("AMX", (7, 5)), Precision.float32, "compute capability 7.5"),
        (ALL_ON_GPU[:1], LARGE, MatrixUnits(None, (9, 0)), Precision.float32, "neither AMX"),
    ],
)
def test_the_choice_depends_on_size_and_hardware(
    words: Sequence[str], parameters: int, units: MatrixUnits, chosen: Precision, reason: str
) -> None:
    found, why = choose_precision(config_of(*words), parameters, units)
    assert found is chosen
    assert reason in why


def test_without_a_gpu_to_look_at_there_is_no_guess() -> None:
    with pytest.raises(ConfigError, match=r"this machine has none to look at\. Set model.precision=bfloat16"):
        choose_precision(config_of(*ALL_ON_GPU), LARGE, AMX)


def test_the_lowest_capability_of_several_gpus_counts() -> None:
    assert lowest_capability("9.0\n10.0\n8.6\n") == (8, 6)
    assert lowest_capability("") is None
    assert lowest_capability("NVIDIA-SMI has failed\n[N/A]\n") is None


def test_this_machine_answers() -> None:
    units = MatrixUnits.of_this_machine()
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    if "amx_bf16" in flags:
        assert units.cpu == "AMX"
    else:
        assert units.cpu == ("AVX512-BF16" if "avx512_bf16" in flags else None)


def test_the_embedded_model_has_float32_on_any_hardware(tmp_path: Path) -> None:
    assert load(DEMO).model.precision is Precision.float32
    assert "float32 (the embedded model has it on any hardware)" in resolve_precision(load(DEMO), MODEL_DIR)[1]
    config, line = resolve_precision(config_of(), MODEL_DIR, AMX)
    assert config.model.precision is Precision.float32
    assert line.startswith("precision  student float32 (model.precision=auto: 0.86 million parameters; ")
    assert line.endswith("teacher float32 (the student's, teacher.precision=auto)")
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load(tmp_path / "config.yaml") == config
    assert resolve_precision(config, MODEL_DIR, AMX)[0] == config


def test_what_a_user_sets_stays() -> None:
    words = ["model.precision=bfloat16", "teacher.precision=float32", "weights.max_logp_diff=0.7"]
    config, line = resolve_precision(config_of(*words), MODEL_DIR, NEITHER)
    assert (config.model.precision, teacher_precision(config)) == (Precision.bfloat16, Precision.float32)
    assert config.weights.max_logp_diff == 0.7
    assert line == "precision  student bfloat16 (as set)   teacher float32 (as set)"


def test_bounds_follow_the_precision() -> None:
    exact, half = (logp_bounds(config_of(f"model.precision={name}")) for name in ("float32", "bfloat16"))
    assert exact.largest < half.largest
    assert exact.typical < half.typical < half.largest
    assert logp_bounds(config_of("model.precision=bfloat16", "weights.max_logp_diff=9")) == LogpBounds(9, 9)
    own = config_of("model.precision=bfloat16", "weights.typical_logp_diff=0.1")
    assert logp_bounds(own) == LogpBounds(half.largest, 0.1)
    assert logp_bounds(config_of()) == exact


def test_a_bound_below_rounding_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"max_logp_diff=0\.001 is below 0\.05 nats, which bfloat16 rounding alone exceeds\. Leave"
    ):
        config_of("model.precision=bfloat16", "weights.max_logp_diff=0.001")
