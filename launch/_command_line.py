"""Helpers common to the commands: their names and examples, exit codes and the number of GPUs."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from demopsd_dist.util.errors import ConfigError, DemoPSDError
from demopsd_dist.util.printable import escape_control_chars
from demopsd_dist.util.rooms import IS_CHECKOUT

ENGINES = ("ray", "vllm", "deepspeed")
OPTIONAL = (*ENGINES, "datasets", "peft")
"""Packages that no part of the library needs at its import: only the extras [cpu] and [gpu] install them."""


@dataclass(frozen=True)
class Verb:
    """A command in the list of `demopsd --help`: its line there, and examples for its own help."""

    summary: str
    examples: tuple[str, ...]


VERBS = {
    "train": Verb(
        "train a model",
        (
            "demopsd train demo",
            "demopsd train demo steps=10 learner.zero_stage=3 --dry-run",
            "demopsd train demo --resume",
        ),
    ),
    "evaluate": Verb("accuracy of a model on a data set", ("demopsd evaluate runs/demo/student minisci",)),
    "report": Verb(
        "write the page that shows a run", ("demopsd report runs/demo", "demopsd report runs/demo runs/demo-2")
    ),
    "watch": Verb(
        "follow a run in the terminal, or in the browser", ("demopsd watch runs/demo", "demopsd watch runs/demo --web")
    ),
    "mark": Verb(
        "score recorded responses with a reward",
        ("demopsd mark runs/demo/samples/step-000001.parquet reward=auto",),
    ),
    "replay": Verb(
        "repeat a recorded step and compare every tensor",
        ("demopsd replay runs/demo --step 21", "demopsd replay runs/demo --step 21 --set demopsd.alpha_max=0.5"),
    ),
    "audit": Verb("account for every sample of a run", ("demopsd audit runs/demo",)),
    "plan": Verb("memory and time of a run on given devices", ("demopsd plan node_8gpu --gpus 8xh100 --hours 12",)),
    "doctor": Verb("check this machine or a cluster before a run", ("demopsd doctor", "demopsd doctor demo")),
    "scale": Verb("more or fewer rollout workers in a running run", ("demopsd scale runs/demo --rollout-workers 4",)),
    "submit": Verb(
        "train as a job of a Ray cluster",
        ("demopsd submit configs/multi_node.yaml --address http://10.0.0.1:8265 output_dir=/shared/runs --detach",),
    ),
    "grafana": Verb("print a Grafana dashboard of the metrics", ("demopsd grafana > grafana.json",)),
    "completion": Verb("print a script that completes commands in the shell", ('eval "$(demopsd completion bash)"',)),
}
"""Commands by name, in the order in which they are listed. `prebuild` and `wait_for_nodes` are for scripts."""


class CommandParser(argparse.ArgumentParser):
    """Parser whose errors are one line with an example, as this project's own errors are; exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the words of the command, and end."""
        listed = VERBS.get(self.prog.rpartition(" ")[2])
        message = message.replace(", key=value", "")  # these may be left out
        wrong = message.rpartition("unrecognized arguments: ")[2].split()
        near = get_close_matches(wrong[0], self._option_string_actions, n=1) if wrong else []
        if near and message.startswith("unrecognized"):
            message = f"there is no option {wrong[0]}. Did you mean {near[0]}?"
        elif message.startswith("unrecognized") or not listed:
            message += f". {self.prog} --help lists the options."
        else:
            message += f". For example: {listed.examples[0]}"
        self.exit(2, f"error: {self.prog}: {escape_control_chars(message)}\n")


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Parser of a command, without arguments yet; its help ends with the examples of `VERBS`.

    Args:
        name: file name in `launch/` without its ending.
        doc: docstring of the command's module.
    """
    listed = VERBS.get(name)
    return CommandParser(
        prog=f"demopsd {name}" if listed else f"python -m launch.{name}",
        description=doc,
        epilog="\n".join(["examples:", *(f"  {example}" for example in listed.examples)]) if listed else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def exit_code_of(work: Callable[[], int]) -> int:
    """Call `work` and return its exit code; for errors 2 for wrong input, 130 when interrupted, 1 for any other
    failure.

    An error of this project is printed as one line, any other with its traceback."""
    try:
        return work()
    except DemoPSDError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            traceback.print_exc()
            return 1
        print(f"error: {without((error.name or '').partition('.')[0])}", file=sys.stderr)
        return ConfigError.exit_code
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1


def require(*packages: str) -> None:
    """Refuse a command whose packages are not all installed, before it starts anything.

    Raises:
        ConfigError: names the missing ones, and says how to get them.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ConfigError(without(*missing))


def without(*missing: str) -> str:
    """Message for packages that are not installed."""
    if IS_CHECKOUT:
        way = "Run make setup, on a machine with CUDA make setup GPU=1, and use .venv/bin/demopsd"
    else:
        way = "Install this package again with its extra [gpu], or [cpu] without a GPU: pip install 'demopsd-dist[gpu]'"
    return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed for {sys.executable}. {way}."


def user_path(text: str) -> Path:
    """A path of the command line, with `~` expanded where the shell did not, as in `--out=~/page.html`."""
    return Path(os.path.expanduser(text))


def count_gpus() -> int:
    """Number of NVIDIA devices that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
