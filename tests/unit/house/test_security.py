"""Security of a run: no pickle loaded from disk, no code of a model or a data set run, no secret written."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demopsd_dist.config import load
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.util.errors import ConfigError
from launch._task import build_task, provenance

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "configs" / "demo.yaml"
ROOMS = ("demopsd_dist", "workers", "launch", "benchmarks")
RUNS_CODE = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle"),
}
SECRETS = {
    "HF_TOKEN": "hf_" + "q7" * 17,
    "WANDB_API_KEY": "8c" * 20,
    "RAY_AUTH_TOKEN": "5e" * 32,
    "AWS_SECRET_ACCESS_KEY": "Zx9" * 13,
}


def dangerous(source: str) -> Iterator[str]:
    """Modules and calls in a file that can run code from data: unpickling, `eval`, shells."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            arguments = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
            names = [name] if name in RUNS_CODE else []
            if name == "torch.load" and arguments.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
            for word in ("allow_pickle", "trust_remote_code", "shell"):
                if arguments.get(word, "False") != "False":
                    yield f"{name}({word}={arguments[word]})"
        yield from (name for name in names if name in RUNS_CODE or name.partition(".")[0] in RUNS_CODE)


def test_nothing_on_disk_is_unpickled_or_run() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 60
    assert [f"{path.relative_to(ROOT)}: {what}" for path in files for what in dangerous(path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import load",
        "def f():\n    import joblib.numpy_pickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=flag)",
        "subprocess.run(line, shell=True)",
        "eval(text)",
        "yaml.load(text, Loader)",
    ],
)
def test_the_search_finds_dangerous_code(source: str) -> None:
    assert list(dangerous(source))
    assert not list(dangerous("torch.load(path, weights_only=True); model.eval(); np.load(path, allow_pickle=False)"))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_model_folder_is_never_run(tmp_path: Path, file: str) -> None:
    folder, marker = tmp_path / "model", tmp_path / "it ran"
    folder.mkdir()
    for path in MODEL_DIR.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "mine.py").write_text(f"open({str(marker)!r}, 'w')\nclass Mine: pass\n")
    settings = json.loads((folder / file).read_text())
    own = {"AutoConfig": "mine.Mine", "AutoTokenizer": ["mine.Mine", "mine.Mine"]}
    changed = {"model_type": "mine"} if file == "config.json" else {"tokenizer_class": "Mine"}
    (folder / file).write_text(json.dumps({**settings, **changed, "auto_map": own}))
    config = load(DEMO, [f"model.path={folder}"])
    if file == "config.json":
        with pytest.raises(ConfigError, match=r"needs Python code of the folder \(auto_map\), which is never run"):
            build_task(config, folder, {})
    else:  # transformers has a tokenizer of its own that reads these files
        build_task(config, folder, {})
    assert not marker.exists()


def test_a_dry_run_and_a_run_folder_hold_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "launch.train", str(DEMO), "--dry-run"]
    shown = subprocess.run(command, cwd=ROOT, env=os.environ | SECRETS, capture_output=True, text=True, check=True)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    config = load(DEMO, [f"output_dir={tmp_path}"])
    folder = RunFolder.create(config)
    folder.write_summary(provenance(config))
    written = "".join(path.read_text() for path in folder.path.iterdir())
    assert "prompts_per_step: 24" in shown.stdout
    assert "prompts_per_step: 24" in written
    assert [name for name, value in SECRETS.items() if value in shown.stdout + shown.stderr + written] == []


@pytest.mark.parametrize("value", ["${oc.env:HF_TOKEN}", "\\${oc.env:HF_TOKEN}", "a${oc.decode:${oc.env:HF_TOKEN}}"])
def test_a_setting_cannot_fetch_a_secret(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    with pytest.raises(ConfigError) as caught:
        load(DEMO, [f"data.train={value}"])
    assert SECRETS["HF_TOKEN"] not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["ray://user:s3cret@head:10001", "s3cret@head:6379", "head:6379?token=s3cret", "s3cret", "local", ""]
)
def test_an_address_with_a_secret_is_refused_without_printing_it(address: str) -> None:
    with pytest.raises(ConfigError, match="ray_address must be auto or host:port") as caught:
        load(DEMO, [f"ray_address={address!r}"])
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["auto", "head:6379", "10.0.0.1:6379", "[fe80::1]:6379", "ray://head-1.local:10001"]
)
def test_an_address_is_accepted(address: str) -> None:
    assert load(DEMO, [f"ray_address={address!r}"]).ray_address == address
