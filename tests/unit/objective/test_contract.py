"""The contract that an objective keeps: every built-in method does, and each kind of breach is named."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from demopsd_dist.config import load
from demopsd_dist.config.method_settings import MethodName, OwnConfig, WeightSource
from demopsd_dist.methods import SupportKind, check_objective, objective_of, resolve_method, teacher_weights
from demopsd_dist.objective import OPSD, SDPO, DemoPSD, TokenLoss, TokenViews, target_of
from demopsd_dist.objective_contract import contract_fault, contract_views
from demopsd_dist.own_objective import check_own_objective, own_objective
from demopsd_dist.util.errors import ConfigError
from launch.train import main

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    "method",
    [
        DemoPSD(),
        DemoPSD(gate="constant", alpha_max=0.5),
        SDPO("forward_kl"),
        SDPO("reverse_kl"),
        OPSD(0.0, term_clip=0.05),
        OPSD(1.0),
    ],
)
@pytest.mark.parametrize("has_tail", [True, False])
def test_every_built_in_method_keeps_the_contract(method: DemoPSD | SDPO | OPSD, has_tail: bool) -> None:
    assert contract_fault(method, has_tail=has_tail) is None


def kl(views: TokenViews) -> torch.Tensor:
    assert views.teacher_logp_BTA is not None
    student_BTA = views.student_logp_BTA
    return (student_BTA.exp() * (student_BTA - views.teacher_logp_BTA)).sum(-1)


def not_finite(views: TokenViews) -> TokenLoss:
    assert views.teacher_logp_BTA is not None
    return TokenLoss((views.student_logp_BTA.exp() / views.teacher_logp_BTA.exp()).square().sum(-1))


def no_gradient(views: TokenViews) -> TokenLoss:
    return TokenLoss(kl(views) * 0.0)


BREACHES: dict[str, tuple[Any, str]] = {
    "returns a tensor": (kl, "it returns Tensor, not a TokenLoss"),
    "one number": (lambda v: TokenLoss(kl(v).mean()), r"loss_BT is \(\) for 24 tokens, not one value a token \(24,\)"),
    "over the batch": (lambda v: TokenLoss(kl(v) / kl(v).detach().mean()), "a token's loss depends on other tokens"),
    "random": (lambda v: TokenLoss(kl(v) * torch.rand(v.student_logp_BTA.shape[0])), "another loss when it is called"),
    "detached": (lambda v: TokenLoss(kl(v).detach()), "does not depend on student_logp_BTA"),
    "zero": (no_gradient, "its gradient is 0 at every token"),
    "not finite": (not_finite, "is not finite for logits with a standard deviation of 60"),
    "metric": (lambda v: TokenLoss(kl(v), {"kl": kl(v)}), "its metric kl has no section: call it for example own/kl"),
    "raises": (lambda v: TokenLoss(v.reference_logp_BTA.sum(-1)), "it raises AttributeError: 'NoneType' object"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_each_breach_is_named(name: str) -> None:
    method, expected = BREACHES[name]
    fault = contract_fault(method, has_reference=name != "raises")
    assert fault is not None

    assert re.search(expected, fault), fault


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path, as the one in which a command is started."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


def test_the_dotted_path_is_the_method(folder: Path) -> None:
    config = load(DEMO, ["method=examples.own_objective.DisagreeingTokens", "own.settings.threshold_nats=0.3"])
    assert config.method is MethodName.own
    assert config.own.objective == "examples.own_objective.DisagreeingTokens"
    assert config.own.settings == {"threshold_nats": 0.3}
    written = load(DEMO, ["method=own", "own.objective=examples.own_objective.DisagreeingTokens"])
    assert written.own.objective == config.own.objective
    (folder / "own.yaml").write_text(f"base: {DEMO}\nmethod: examples.own_objective.DisagreeingTokens\n")
    assert load(folder / "own.yaml").own.objective == config.own.objective


def test_an_own_method_is_resolved_like_the_others() -> None:
    words = ["method=examples.own_objective.DisagreeingTokens", "own.reference=frozen", "own.top_k=20"]
    config = load(DEMO, words)
    method = resolve_method(config)
    assert (method.top_k, method.forwards.support) == (20, SupportKind.student)
    assert teacher_weights(method, config) == {WeightSource.ema, WeightSource.frozen}
    assert method.shows_solutions
    check_objective(config)
    objective = objective_of(config)
    views = contract_views()
    target = target_of(objective, views)
    assert target is not None
    assert views.teacher_logp_BTA is not None
    assert torch.equal(target, views.teacher_logp_BTA)


REFUSALS = {
    "no_such_module.Method": "there is no module no_such_module. Start the command in its folder",
    "demopsd_dist.objective.NoSuchThing": "demopsd_dist.objective has no NoSuchThing",
    "demopsd_dist.objective.sdpo.Divergence": "cannot be made with own.settings|it raises|must be a class",
    "mine_broken.Method": "importing it failed: ZeroDivisionError: division by zero",
    "mine_needs.Method": "importing it failed: ModuleNotFoundError: No module named 'absent_package'",
    "mine_number.method": "is float. It must be a class whose objects map TokenViews to a TokenLoss",
    "mine_strict.Method": r"cannot be made with own.settings \(no settings\): TypeError: .*strength",
}


@pytest.mark.parametrize("path", REFUSALS)
def test_what_cannot_be_imported_or_made_is_refused_with_the_reason(path: str, folder: Path) -> None:
    (folder / "mine_broken.py").write_text("1 / 0\n")
    (folder / "mine_needs.py").write_text("import absent_package\n")
    (folder / "mine_number.py").write_text("method = 1.5\n")
    (folder / "mine_strict.py").write_text("class Method:\n    def __init__(self, strength): pass\n")
    with pytest.raises(ConfigError, match=REFUSALS[path]):
        check_own_objective(OwnConfig(objective=path))


def test_settings_reach_the_object() -> None:
    found = own_objective(OwnConfig(objective="demopsd_dist.objective.DemoPSD", settings={"alpha_max": 0.7}))
    assert found == DemoPSD(alpha_max=0.7)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["method=own"], "method=own with own.objective=null: the dotted path of a class is needed"),
        (["method=own", "own.objective=Mine"], "own.objective=Mine: the dotted path of a class is needed"),
        (["method=a.B", "own.reference=trust_region"], "own.reference=trust_region: only a teacher can be that"),
        (["method=a.B", "own.support=reference"], "own.support=reference: own runs no forward of a reference"),
        (
            ["method=a.B", "own.support=reference", "own.reference=live"],
            "own.support=reference with own.reference=live, which is the learner",
        ),
        (["own.top_k=5"], "own.top_k=5 has no effect with method=demopsd"),
        (["method=mine"], "method"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(DEMO, words)
    assert expected in str(refused.value)


def test_a_dry_run_refuses_a_breach(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["from demopsd_dist.objective import TokenLoss", "class Method:", "    def __call__(self, views):"]
    (folder / "mine_mean.py").write_text("\n".join([*lines, "        return TokenLoss(views.student_logp_BTA.mean())"]))
    assert main([str(DEMO), "--dry-run", "method=mine_mean.Method", "data.minisci_train_size=32"]) == 2
    assert "error: method=mine_mean.Method: loss_BT is () for 24 tokens" in capsys.readouterr().err
