"""A parser whose errors are one line with a suggestion, and scripts by which shells complete its commands and flags."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, NoReturn

SHELLS = ("bash", "zsh", "fish")
# Lets zsh use bash's completions.
_ZSH = (
    "(( $+functions[compdef] )) || { autoload -U +X compinit && compinit; }\n"
    "autoload -U +X bashcompinit && bashcompinit\n"
)
_INVALID_CHOICE = re.compile(r"invalid choice: '?(.*?)'? \(choose from (.*)\)$", re.S)


class Parser(argparse.ArgumentParser):
    """argparse's, but a mistake is answered with one line instead of all flags there are."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parses; the subcommand, which knows its flags, reports unknown words."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            meant = [near for word in unknown if (near := _nearest(word, self._option_string_actions))]
            self.error(f"does not know {' '.join(unknown)}{_did_you_mean(meant)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Ends with status 2 and one line."""
        if found := _INVALID_CHOICE.search(message):
            near = _nearest(found[1], re.findall(r"[\w.-]+", found[2]))
            message += _did_you_mean([near] if near else [])
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _nearest(word: str, known: Iterable[str]) -> str | None:
    name = word.partition("=")[0]
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def _did_you_mean(words: list[str]) -> str:
    return f"; did you mean {' '.join(dict.fromkeys(words))}?" if words else ""


def command_names(parser: argparse.ArgumentParser) -> list[str]:
    """Returns the words that may come first."""
    return [name for name, _, _ in _commands(parser)]


class _Flag(NamedTuple):
    """An argument, as a shell's completion sees it; one without names is positional."""

    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, list[_Flag]]]:
    """Yields (name, help, arguments) of each command."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: action.help or "" for action in commands._choices_actions}
    for name, command in commands.choices.items():
        yield name, helps.get(name, ""), list(map(_flag, command._actions))


def _flag(action: argparse.Action) -> _Flag:
    braces = re.fullmatch(r"\{(.*)\}", action.metavar) if isinstance(action.metavar, str) else None
    choices = map(str, action.choices) if action.choices else braces[1].split(",") if braces else ()
    text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help).replace("%%", "%").split("(")[0].strip()
    return _Flag(tuple(action.option_strings), text, action.nargs != 0, tuple(choices))


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Returns a script that a shell of SHELLS reads at its start to complete the command's words."""
    if shell == "fish":
        return _fish(parser)
    return (_ZSH if shell == "zsh" else "") + _bash(parser)


def _bash(parser: argparse.ArgumentParser) -> str:
    commands = list(_commands(parser))
    values = [
        f'    "{command} {name}") words="{" ".join(flag.choices)}" ;;'
        for command, _, flags in commands
        for flag in flags
        for name in flag.names or (command,)  # the first word after the command
        if flag.choices
    ]
    names = [f'    {command}) words="{_names(flags)}" ;;' for command, _, flags in commands]
    lines = [
        "_qwen_server() {",
        '  local words="" command="${COMP_WORDS[1]}"',
        '  local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}"',
        '  case "$command $prev" in',
        *values,
        "  esac",
        '  if [[ -z $words && $COMP_CWORD -gt 1 && $cur == -* ]]; then case "$command" in',
        *names,
        "  esac; fi",
        f'  if [[ $COMP_CWORD -eq 1 ]]; then words="{" ".join(name for name, *_ in commands)} --version --help"; fi',
        '  COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        "}",
        "complete -o default -F _qwen_server qwen-server",
    ]
    return "\n".join(lines) + "\n"


def _names(flags: list[_Flag]) -> str:
    return " ".join(name for flag in flags for name in flag.names if name.startswith("--"))


def _fish(parser: argparse.ArgumentParser) -> str:
    lines = []
    for command, text, flags in _commands(parser):
        lines.append(f"complete -c qwen-server -n __fish_use_subcommand -f -a {command} -d {_quoted(text)}")
        for flag in flags:
            line = f"complete -c qwen-server -n '__fish_seen_subcommand_from {command}'"
            for name in flag.names:
                line += f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
            if flag.choices:
                line += f" -f -a {_quoted(' '.join(flag.choices))}"
            line += " -r" if flag.names and flag.takes_value else ""
            lines.append(f"{line} -d {_quoted(flag.help)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
