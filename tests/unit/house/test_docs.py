"""Documents: their commands run, their links and paths exist, and their code is the code of the project."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from demopsd_dist import demopsd_loss
from demopsd_dist.config import load, to_yaml
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record import digests, samples
from demopsd_dist.run_record.checkpoints import Checkpoints
from demopsd_dist.run_record.folder import RunFolder, replace_text
from demopsd_dist.training import loop
from launch import replay, submit
from launch.train import main
from tests.browser.recorded_runs import a_run

ROOT = Path(__file__).parents[3]
PAGES = sorted(ROOT.glob("docs/*.md"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("configs/*.md"), *PAGES])
FILE = re.compile(
    r"(?<![\w/.-])(?:demopsd_dist|workers|launch|benchmarks|configs|examples|tests|docs|requirements)/[\w./*-]*[\w*/]"
)
CODE = ("demopsd_dist", "workers", "launch", "benchmarks")


CONFIGS_WITHOUT_MODEL = {
    *("one_gpu", "one_gpu_lora", "node_8gpu", "node_8gpu_32b_lora", "multi_node", "paper_qwen3_4b", "smollm2")
}


def commands(path: Path, program: str) -> list[str]:
    """Command lines of a page that start with the program, continued lines joined."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(rf"^{program} [^\n#]*", text, flags=re.MULTILINE)


def test_the_loop_in_the_docs_is_the_loop() -> None:
    text = (ROOT / "docs" / "how_it_works.md").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(async def train.*?)```", text, flags=re.DOTALL)
    assert shown
    assert len(shown.group(1).splitlines()) <= 32
    assert shown.group(1).strip() == inspect.getsource(loop.train).strip()


def test_the_loss_in_the_methods_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The example, on the shapes of its table."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    text = text.partition("## The loss alone")[2]
    shown = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert shown
    arguments = set(re.findall(r"^\| `(\w+)` \| [(n]", text, flags=re.MULTILINE))
    assert {re.sub("_BTV?$", "", name) for name in arguments} <= {
        re.sub("_BTV?$", "", name) for name in inspect.signature(demopsd_loss).parameters
    }
    assert len(arguments) == 6
    torch.manual_seed(0)
    logits = {f"{name}_logits": torch.randn(2, 3, 200) for name in ("student", "reference", "teacher")}
    student = logits["student_logits"].requires_grad_()
    exec(shown.group(1), {**logits, "mask": torch.ones(2, 3)})
    assert student.grad is not None
    assert len(capsys.readouterr().out.split()) == 3


def test_the_metrics_in_the_methods_page_are_recorded() -> None:
    """Every name in its table of metrics is a string in the code, complete or before its statistic."""
    text = (ROOT / "docs" / "methods.md").read_text()
    names = re.findall(r"`((?:leakage|policy|entropy|demopsd|support)/[a-z_]+)`", text)
    assert len(names) > 10
    code = "".join(path.read_text() for room in ("demopsd_dist", "workers") for path in (ROOT / room).rglob("*.py"))
    assert [name for name in names if f'"{name}"' not in code] == []


def test_the_samples_page_has_every_column() -> None:
    text = (ROOT / "docs" / "samples.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+)` \| (\S+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert {name: (kind, meaning) for name, kind, meaning in shown} == samples.COLUMNS


def test_the_evaluation_page_has_every_column() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+)` \| (int32|string|list<\w+>) \| (.+) \|$", text, flags=re.MULTILINE)
    assert {name: (kind, meaning) for name, kind, meaning in shown} == samples.EVALUATION_COLUMNS


def test_the_examples_of_the_samples_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("duckdb")
    a_run(tmp_path / "runs", steps=2, responses=8)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "samples.md").read_text(encoding="utf-8")
    for example in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(example, {})
        assert "disagreement" in capsys.readouterr().out


def messages_of_the_code() -> Iterator[str]:
    """String literals of the code; values that are filled in stand as an ellipsis."""
    for room in ("demopsd_dist", "workers", "launch"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
    for name in ("Makefile", "requirements/cpu.overrides"):
        yield (ROOT / name).read_text(encoding="utf-8")


FEW = ["data.minisci_train_size=64", "data.minisci_test_size=16"]  # questions to render, for a faster dry run


@pytest.mark.parametrize(("page", "heading", "count"), [("troubleshooting", "### ", 21), ("weights", "| ", 8)])
def test_the_messages_in_a_page_are_in_the_code(page: str, heading: str, count: int) -> None:
    """The text between the ellipses of a heading occurs, in this order, in one message of the code."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").rpartition("\n## Messages\n")[-1]
    shown = re.findall(rf"^{re.escape(heading)}`([^`]+)`", text, flags=re.MULTILINE)
    assert len(shown) >= count
    messages = "\0".join(messages_of_the_code())
    patterns = {message: "[^\0]*".join(map(re.escape, message.split("…"))) for message in shown}
    assert [message for message, pattern in patterns.items() if not re.search(pattern, messages)] == []


@pytest.mark.parametrize("page", ["tuning", "planning"])
def test_the_figures_in_a_page_are_those_of_the_results(page: str) -> None:
    """A new measurement makes the page fail until its conclusions are written again."""
    results = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks" / "results").glob("*.md"))
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    figures = re.findall(r"(?<![\w.])\d+(?:,\d{3})+\b|(?<![\w.])\d+\.\d+\b(?!M)", text)
    assert len(figures) > 15
    measured = set(re.findall(r"\d+(?:\.\d+)?", results.replace(",", "")))
    assert [figure for figure in figures if figure.replace(",", "") not in measured] == []


def test_the_replay_page_has_every_tensor_and_its_commands_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+)` \| (response|step|rank|parameter) \|", text, flags=re.MULTILINE)
    kinds = {name: digests.ROWS.get(name, "response").replace("scalar", "step") for name in digests.ORDER}
    assert shown == list(kinds.items())
    monkeypatch.chdir(tmp_path)
    shown_commands = [command for path in DOCUMENTS for command in commands(path, "demopsd replay")]
    assert len(shown_commands) >= 3
    for command in shown_commands:
        assert replay.main(shlex.split(command)[2:]) == 2
        assert "runs/demo is no run folder" in capsys.readouterr().err


def anchors(path: Path) -> set[str]:
    """Anchors that a page's headings get, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert [t for t in targets if not t.startswith("http") and not (path.parent / t).exists()] == []
    for page, anchor in re.findall(r"\]\(([^)#]*\.md)?#([^)]+)\)", text):
        assert anchor in anchors(path.parent / page if page else path), f"{page}#{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(path: Path) -> None:
    names = FILE.findall(re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL))
    assert [name for name in names if not any(ROOT.glob(name.rstrip("/")))] == []
    tests = re.findall(r"`(test_\w+\.py)`", path.read_text(encoding="utf-8"))
    assert [name for name in tests if not any(ROOT.glob(f"tests/**/{name}"))] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_names_the_code_that_it_describes(path: Path) -> None:
    """Every page names a source file near its top, before its first section with commands or tables of its own."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert any(name.endswith(".py") and name.startswith(CODE) for line in lines[:30] for name in FILE.findall(line))


def test_the_readme_fits_one_screen_of_prose_and_names_the_file_of_each_stage() -> None:
    """The stages are those of the loop's step, and each row names a file."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "have not been run yet" in text.partition("\n## ")[0], "the status stands before the first section"
    table = re.search(r"^\| stage \| file \|.*?\n\n", text, flags=re.MULTILINE | re.DOTALL)
    assert table
    rows = [line for line in table.group(0).splitlines()[2:] if line]
    assert len(rows) == 12
    assert [row for row in rows if not any(name.endswith(".py") for name in FILE.findall(row))] == []
    for picture in re.findall(r"!\[[^\]]{20,}\]\(([^)]+)\)", text):
        assert 10_000 < (ROOT / picture).stat().st_size < 400_000


def test_the_index_lists_every_page() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").partition("## By symptom")[0]
    linked = set(re.findall(r"\]\((\w+\.md)", text))
    assert {path.name for path in PAGES} - {"index.md", "troubleshooting.md"} == linked


def test_the_glossary_is_in_alphabetical_order() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = [term.casefold() for term in re.findall(r"^\| ([^|]+) \| ", text, flags=re.MULTILINE)][1:]
    assert len(terms) > 50
    assert terms == sorted(terms)


def test_how_it_works_names_the_files_behind_three_questions() -> None:
    """Each answer names at most three files, and each class or function in it is defined in one of them."""
    text = (ROOT / "docs" / "how_it_works.md").read_text(encoding="utf-8")
    pattern = r"^\* \*\*([^*]+\?)\*\* (.*?)(?=\n\*|\n\n)"
    answers = dict(re.findall(pattern, text, flags=re.MULTILINE | re.DOTALL))
    assert len(answers) == 3
    for question, answer in answers.items():
        files = FILE.findall(answer)
        assert 1 <= len(files) <= 3, question
        code = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
        symbols = [part for names in re.findall(r"`([\w.]+)`", answer) for part in names.split(".")]
        assert symbols
        assert [name for name in symbols if not re.search(rf"\b(class|def) {name}\b", code)] == [], question


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = {command for path in DOCUMENTS for command in commands(path, "make")}
    assert {command.split()[1] for command in shown} >= {"demo", "test", "check"}
    for command in shown:
        assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.MULTILINE), command


def make_run(words: list[str]) -> None:
    """Make the run folder, and the checkpoint, that a command continues."""
    named = [Path(word) for option, word in pairwise(words) if option == "--resume-from"]
    config = load(words[0], [*FEW, *(word for word in words[1:] if "=" in word)])
    at = named[0] if named else Path(config.output_dir, config.name)
    path = at.parents[1] if at.parent.name == "checkpoints" else at
    if not path.exists():
        path.mkdir(parents=True)
        replace_text(RunFolder(path).config, to_yaml(config))
    if path != at:

        async def write() -> None:
            async with Checkpoints(at.parent, keep=1).writing(int(at.name.removeprefix("step-")), {}):
                pass

        asyncio.run(write())


def test_train_commands_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command runs as a dry run, in a folder with the files and models that it names."""
    shown = [command for path in DOCUMENTS for command in commands(path, "demopsd train")]
    assert len(shown) >= 3
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    methods = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    (module,) = re.findall(r"```python\n(# my_package\.py.*?)```", methods, flags=re.DOTALL)
    (tmp_path / "my_package.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for command in shown:
        words = shlex.split(command)[2:]
        for word in words:
            name, _, value = word.partition("=")
            if name == "model.path" and not Path(value).exists():
                shutil.copytree(MODEL_DIR, value)
                template = Path(value, "chat_template.jinja")  # reads a value, as templates of thinking models do
                template.write_text("{% set thinking = enable_thinking %}" + template.read_text(encoding="utf-8"))
            elif name.startswith("data.") and value.endswith(".jsonl") and not Path(value).exists():
                Path(value).parent.mkdir(exist_ok=True)
                lines = [f'{{"prompt": "1+{i}?", "answer": "{1 + i}"}}\n' for i in range(64)]
                Path(value).write_text("".join(lines))
        if words[0].removeprefix("configs/").removesuffix(".yaml") in CONFIGS_WITHOUT_MODEL:
            load(words[0], words[1:])
            continue  # their models are not here; test_shipped_configs.py covers them
        if "--resume" in words or "--resume-from" in words:
            make_run(words)
        assert main([words[0], *FEW, *words[1:], "--dry-run"]) == 0, (command, capsys.readouterr().err)


def test_submit_commands_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command is parsed and its job's command line built; nothing is sent."""
    shown = [command for path in DOCUMENTS for command in commands(path, "demopsd submit")]
    assert len(shown) >= 4
    monkeypatch.chdir(ROOT)
    for command in shown:
        arguments = submit.parse_arguments(shlex.split(command)[2:])
        if arguments.config:
            assert "launch.train" in submit.entrypoint(arguments, submit.load_settings(arguments))


@pytest.mark.parametrize("program", ["plan", "doctor"])
def test_commands_that_look_ahead_are_right(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command runs unchanged, because it starts no roles."""
    shown = {command for path in DOCUMENTS for command in commands(path, f"demopsd {program}")}
    assert shown
    monkeypatch.chdir(ROOT)
    for command in shown:
        words = shlex.split(command)[2:]
        assert importlib.import_module(f"launch.{program}").main(words) == 0, (command, capsys.readouterr())
