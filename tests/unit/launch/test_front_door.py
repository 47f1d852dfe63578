"""The command `demopsd`: from any folder, quick, with every command of the folder and nothing else in its list."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from demopsd_dist import __version__
from demopsd_dist.config import load, settings_keys, shipped_configs
from launch.__main__ import main
from launch._command_line import VERBS

ROOT = Path(__file__).parents[3]
COMMAND = Path(sys.executable).with_name("demopsd")
UNLISTED = {"prebuild", "wait_for_nodes"}
HEAVY = ("torch", "numpy", "pyarrow", "omegaconf", "transformers", "rich", "ray", "vllm", "deepspeed")


def run(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), *words], cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_it_says_what_to_type_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Start here:")
    assert [line.split()[:2] for line in lines[start + 1 : start + 3]] == [["demopsd", "doctor"], ["demopsd", "train"]]
    assert all(len(line) <= 82 for line in lines)


def test_every_command_is_listed_and_no_helper(capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.stem for path in (ROOT / "launch").glob("*.py") if not path.stem.startswith("_")}
    assert files - UNLISTED == set(VERBS)
    main(["--help"])
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said and verb.summary in said for name, verb in VERBS.items())
    assert not any(name in said for name in UNLISTED)


@pytest.mark.parametrize("name", VERBS)
def test_a_command_explains_itself_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert said.startswith(f"usage: demopsd {name}")
    assert all(example in said.partition("\nexamples:\n")[2] for example in VERBS[name].examples)


@pytest.mark.parametrize(
    ("word", "hint"), [("trian", "Did you mean train?"), ("xyz", "There are: train, evaluate, report")]
)
def test_an_unknown_command_is_refused_with_the_nearest(
    word: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: there is no command '{word}'. {hint}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["plan", "demo"],
            "demopsd plan: the following arguments are required: --gpus. For example: demopsd plan node",
        ),
        (["train"], "demopsd train: the following arguments are required: config. For example: demopsd train demo"),
        (["train", "demo", "--dryrun"], "demopsd train: there is no option --dryrun. Did you mean --dry-run?"),
        (
            ["train", "demo", "--q\n\x1b[2J"],
            r"demopsd train: unrecognized arguments: --q\n\x1b[2J. demopsd train --help",
        ),
        (
            ["replay", "runs/demo", "--step", "one"],
            "demopsd replay: argument --step: invalid int value: 'one'. For exam",
        ),
    ],
)
def test_wrong_words_of_a_command_are_refused_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


def test_it_runs_from_any_folder_beside_other_packages_of_its_names(tmp_path: Path) -> None:
    """Another `launch` and another `workers`, in the working folder and on the path, are not imported."""
    for name in ("launch", "workers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    shown = run("--version", folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert (shown.returncode, shown.stdout) == (0, f"demopsd {__version__}\n"), shown.stderr
    planned = run("plan", "demo", "--gpus", "1xh100", folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert planned.returncode == 2
    assert planned.stderr.startswith("error: the config is for CPU"), planned.stderr


def test_another_package_of_its_names_that_was_imported_first_is_refused(tmp_path: Path) -> None:
    (tmp_path / "workers.py").write_text("")
    code = "import workers, sys; from demopsd_dist.__main__ import main; sys.exit(main(['--version']))"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert f"error: workers has been imported from {tmp_path}/workers.py, and demopsd-dist needs" in shown.stderr


def test_a_reward_of_the_working_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "my_reward.py").write_text("def length(response, question):\n    return len(response) / 8\n")
    (tmp_path / "said.jsonl").write_text('{"prompt": "1+1?", "answer": "2", "response": "four"}\n')
    shown = run("mark", "said.jsonl", "reward=my_reward.length", "--scores", folder=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, "0.5\n"), shown.stderr


def test_the_list_needs_the_standard_library_alone() -> None:
    code = f"import sys; from demopsd_dist.__main__ import main; main([]); print({HEAVY} & sys.modules.keys())"
    code = code.replace(f"{HEAVY}", f"set({HEAVY})")
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "set()"


def test_the_help_of_the_commands_imports_no_engine() -> None:
    """All in one process, each after the others."""
    code = f"""
import sys
from importlib import import_module
for name in {list(VERBS)}:
    import_module(f"launch.{{name}}").make_parser()
    print(name, {{'torch', 'ray', 'vllm', 'deepspeed'}} & sys.modules.keys())
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [f"{name} set()" for name in VERBS]


def test_a_shipped_config_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the user's with that name comes first."""
    monkeypatch.chdir(tmp_path)
    assert {"demo", "node_8gpu", "controls/constant_alpha"} <= set(shipped_configs())
    assert load("demo") == load(ROOT / "configs" / "demo.yaml")
    Path("demo").write_text("name: mine\n")
    assert load("demo").name == "mine"


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    script = run("completion", "bash", folder=folder).stdout
    script += """
complete_line() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMPREPLY=()
  _demopsd_completion demopsd "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}" 2> /dev/null
  printf '%s\\n' "${COMPREPLY[@]}"
}
"""
    (folder / "completion.sh").write_text(script)
    (folder / "demonstration.yaml").write_text("")
    return folder


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("demopsd rep", "replay report"),
        ("demopsd train demon", "demonstration.yaml"),
        ("demopsd train demo", "demo demonstration.yaml"),
        ("demopsd train demo learner.num_w", "learner.num_workers="),
        ("demopsd train demo --resume-", "--resume-from"),
        ("demopsd report comp", "completion.sh"),
    ],
)
def test_the_shell_completes(words: str, expected: str, completion: Path) -> None:
    command = ["bash", "-c", f"source ./completion.sh; complete_line {words}"]
    shown = subprocess.run(command, cwd=completion, capture_output=True, text=True, check=True)
    assert sorted(shown.stdout.split()) == expected.split()


def test_the_page_of_commands_has_every_command() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = [f"| `demopsd {name}` | {verb.summary} | `{verb.examples[0]}` |" for name, verb in VERBS.items()]
    assert [row for row in rows if row not in text] == []


def test_completion_knows_every_setting() -> None:
    parser = import_module("launch.completion").whole_parser()
    assert "demopsd" in parser.prog
    keys = settings_keys()
    assert len(keys) > 100
    assert len(keys) == len(set(keys))
    assert "learner.zero_stage" in keys
    assert "learner" not in keys
