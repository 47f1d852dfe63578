"""The command `demopsd`, also as `python -m launch`: runs one of the commands of this folder by name.

A command's module is imported when it is called, so the list and `--version` need only the standard library.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from demopsd_dist import __version__
from demopsd_dist.util.fitted_lines import print_fitted
from launch._command_line import VERBS

FIRST = """Start here:
  demopsd doctor           check this machine
  demopsd train demo       train a small model: two CPU cores, two minutes
  demopsd watch runs/demo  follow it, from another shell
Your own data, one JSON object a line with prompt and answer, tried without
starting anything:
  demopsd train demo data.train=mine.jsonl data.test=split data.ood=null --dry-run"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named by the first word with the rest; the exit code.

    Without a word the commands are listed, after those to begin with. A name that is no command ends with exit code 2.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print_fitted(overview().splitlines(), indent=4)
        return 0
    if words[0] in ("-V", "--version"):
        print(f"demopsd {__version__}")
        return 0
    if words[0] not in VERBS:
        near = difflib.get_close_matches(words[0], VERBS, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(VERBS)}."
        print(f"error: there is no command {words[0]!r}. {hint}", file=sys.stderr)
        return 2
    return import_module(f"launch.{words[0]}").main(words[1:])


def overview() -> str:
    """First steps, and a line for each command."""
    width = max(map(len, VERBS))
    return "\n".join(
        [
            f"demopsd {__version__}: trains reasoning LLMs with DemoPSD",
            "",
            FIRST,
            "",
            "Commands (demopsd COMMAND --help explains one, with examples):",
            *(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()),
            "",
            "Also: demopsd --version",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
