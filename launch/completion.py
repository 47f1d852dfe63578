"""Completion in the shell: `demopsd completion bash|zsh`

Prints a script that completes commands, options, files, names of shipped configs and settings. Put the line below into
`~/.bashrc` (for zsh, with `zsh`, into `~/.zshrc` after `compinit`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from demopsd_dist.config import settings_keys, shipped_configs
from launch._command_line import VERBS, command_parser, exit_code_of, user_path

SHELLS = ("bash", "zsh")
NO_SPACE_AFTER_A_KEY = """
_demopsd_completion() {
  _shtab_demopsd "$@"
  if [[ ${COMPREPLY[0]-} == *= ]]; then compopt +o filenames -o nospace; fi
}
complete -o filenames -F _demopsd_completion demopsd
"""


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = command_parser("completion", __doc__)
    parser.add_argument("shell", choices=SHELLS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    return exit_code_of(lambda: print_script(arguments.shell))


def print_script(shell: str) -> int:
    import shtab

    script = shtab.complete(whole_parser(), shell)
    print(script + (NO_SPACE_AFTER_A_KEY if shell == "bash" else ""))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """Parser of `demopsd` with all commands, with the completions of their arguments."""
    whole = argparse.ArgumentParser(prog="demopsd")
    commands = whole.add_subparsers()
    configs = words("config_file", shipped_configs(), files=True)
    settings = words("setting", [f"{key}=" for key in settings_keys()])
    for name, verb in VERBS.items():
        parser = import_module(f"launch.{name}").make_parser()
        for action in parser._actions:
            if action.dest == "config" and action.type is None:
                action.complete = configs
            elif action.metavar == "key=value":
                action.complete = settings
            elif action.type is user_path:
                action.complete = words("file", (), files=True)
        commands.add_parser(name, help=verb.summary, parents=[parser], add_help=False)
    return whole


def words(name: str, items: Iterable[str], files: bool = False) -> dict[str, object]:
    """Completion to one of the words, for each of `SHELLS`; with `files` also to a file."""
    listed = " ".join(items)
    body = f"compgen -W '{listed}' -- $1" + ("; compgen -f -- $1" if files else "")
    zsh = f"_demopsd_{name}" if files else f"({listed})"
    function = f"_demopsd_{name}() {{ compadd -- {listed}; _files }}" if files else ""
    return {
        "bash": f"_demopsd_{name}",
        "zsh": zsh,
        "preamble": {"bash": f"_demopsd_{name}() {{ {body}; }}", "zsh": function},
    }


if __name__ == "__main__":
    sys.exit(main())
