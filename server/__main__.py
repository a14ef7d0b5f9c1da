"""The command `qwen-server`; `python -P -m server` is the same.

Only reads arguments: each subcommand lives in a module of its own, imported when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from model.contract.errors import StartupError
from server.cli.command_line import SHELLS, Parser, command_names, completion
from server.cli.published_flags import names_checkpoint, translate
from server.config.sources import load_settings, requested_log_format
from server.config.types import TokensOrContext
from server.hubs.download import add_hub_arguments
from server.settings import SECRETS, Settings, flag_name, is_repeatable, variable_name
from server.telemetry.logs import json_line
from tools.batch import arguments as batch_arguments
from tools.bench import arguments as bench_arguments
from tools.chat import arguments as chat_arguments
from tools.convert import options as convert_options
from tools.doctor import command as doctor
from tools.evaluation import command as evaluation_command
from tools.export import options as export_options
from tools.finetune import options as finetune_options
from tools.memory import command as memory_command
from tools.merge import options as merge_options
from tools.perplexity import options as perplexity_options
from tools.quantize import options as quantize_options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (by default the process's) and returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    translation = translate(words)
    if translation is not None:
        print(f"qwen-server: {translation}", file=sys.stderr)
        return 2
    parser = build_parser()
    if not words:
        parser.print_help()
        return 0
    if words[0] not in command_names(parser) and not words[0].startswith("-") and names_checkpoint(words[0]):
        words.insert(0, "serve")
    words, server_flags = chat_arguments.split_server_flags(words)
    arguments = parser.parse_args(words)
    if "command" not in arguments:
        parser.error("name a COMMAND")
    command = arguments.command
    del arguments.command
    if server_flags:
        arguments.server_flags = server_flags
    try:
        return int(command(arguments))
    except StartupError as error:
        print(f"qwen-server: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


class _Tool(NamedTuple):
    """A subcommand that lives in `tools`.

    Attributes:
        help: one line.
        options: module with DESCRIPTION and `add_arguments`.
        run: "module:function", imported when the command runs; it takes the arguments and returns the exit status.
        has_hub: its checkpoint may be a hub id; `--hub` and `--revision` are added.
    """

    help: str
    options: Any
    run: str
    has_hub: bool = False

    def __call__(self, arguments: argparse.Namespace) -> int:
        module, _, function = self.run.partition(":")
        return int(getattr(importlib.import_module(module), function)(arguments))


_CLIENTS = {
    "chat": _Tool("chat in the terminal", chat_arguments, "tools.chat.command:run"),
    "batch": _Tool("do the requests of a file, without a server", batch_arguments, "tools.batch.command:run"),
    "bench": _Tool("measure a server under load", bench_arguments, "tools.bench.command:run"),
}
_TOOLS = {
    "eval": _Tool(
        "measure tool calls or chat on any OpenAI-compatible server",
        evaluation_command,
        "tools.evaluation.evaluate:evaluate",
    ),
    "memory": _Tool(
        "tell how much memory a checkpoint takes, without loading it", memory_command, "tools.memory.report:report"
    ),
    "doctor": _Tool(
        "look at this machine: versions, devices, kernels, and what to do about what is not well",
        doctor,
        "tools.doctor.command:run",
    ),
    "quantize": _Tool(
        "make an Int4 or Int8 checkpoint from an unquantised one", quantize_options, "tools.start:quantize", True
    ),
    "convert": _Tool(
        "write a checkpoint in transformers' Qwen2 layout, or back", convert_options, "tools.start:convert", True
    ),
    "merge": _Tool(
        "fold a LoRA adapter into the checkpoint it was trained on", merge_options, "tools.start:merge", True
    ),
    "export": _Tool(
        "write a checkpoint as a GGUF file for llama.cpp", export_options, "tools.start:export", True
    ),
    "perplexity": _Tool(
        "tell how well a checkpoint reads texts beyond its trained length",
        perplexity_options,
        "tools.start:perplexity",
        True,
    ),
    "finetune": _Tool(
        "train an adapter, or all weights, on conversations", finetune_options, "tools.start:finetune", True
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command and its subcommands."""
    parser = Parser(
        prog="qwen-server", description="An OpenAI-compatible server for first-generation Qwen checkpoints."
    )
    parser.add_argument(
        "--version",
        action=_ShowVersion,
        nargs=0,
        default=argparse.SUPPRESS,
        help="tell the version and the commit, and end",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND")
    serve = subparsers.add_parser(
        "serve",
        help="serve a checkpoint",
        description="Serve a checkpoint. Every flag is also an environment variable (QWEN_SERVER_MAX_MODEL_LEN for"
        " --max-model-len) and a key of the configuration file (max_model_len); a flag beats a variable, a variable"
        " beats the file.",
        argument_default=argparse.SUPPRESS,
    )
    add_settings(serve)
    serve.set_defaults(command=_serve)
    _add_tools(subparsers, _CLIENTS)
    check = subparsers.add_parser(
        "check-config",
        help="show the settings `serve` would use, and where each comes from",
        description="Takes what `serve` takes; prints the settings, or one line about what is wrong with them.",
        argument_default=argparse.SUPPRESS,
    )
    add_settings(check)
    check.set_defaults(command=_check_config)
    _add_tools(subparsers, _TOOLS)
    shell = subparsers.add_parser(
        "completion",
        help="print what makes a shell complete this command's words",
        description='In ~/.bashrc: eval "$(qwen-server completion bash)"; in ~/.zshrc the same with zsh. For fish:'
        " qwen-server completion fish > ~/.config/fish/completions/qwen-server.fish",
    )
    shell.add_argument("shell", choices=SHELLS)
    shell.set_defaults(command=_completion)
    return parser


def _add_tools(subparsers: Any, tools: Mapping[str, _Tool]) -> None:
    for name, tool in tools.items():
        parser = subparsers.add_parser(name, help=tool.help, description=tool.options.DESCRIPTION)
        tool.options.add_arguments(parser)
        if tool.has_hub:
            add_hub_arguments(parser)
        parser.set_defaults(command=tool)


class _ShowVersion(argparse.Action):
    """`--version`; argparse's own would look the version up at every start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from server.version import server_version

        print(f"qwen-server {server_version()}")
        parser.exit()


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each setting; values are validated together with those of the other sources."""
    parser.add_argument("--config", metavar="FILE", help="TOML or YAML file with settings")
    for name, field in Settings.model_fields.items():
        text = (field.description or "").replace("%", "%%")
        if name == "model":
            parser.add_argument("model", metavar="MODEL", nargs="?", help=text)
        elif field.annotation is bool:
            parser.add_argument(flag_name(name), dest=name, action="store_true", help=text)
        else:
            if field.default not in (None, ()) and "default" not in text:
                text += f" (default: {field.default})"
            action = "append" if is_repeatable(name) else "store"
            parser.add_argument(
                flag_name(name), dest=name, action=action, metavar=_metavar(field.annotation), help=text
            )


def _metavar(annotation: Any) -> str:
    """Returns the choices of a setting, or the kind of its value."""
    choices = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "{" + ",".join(choices) + "}"
    if TokensOrContext in choices:
        return "N|context"
    numeric = {int, float}.intersection((annotation, *choices))
    return "N" if numeric else "VALUE"


def _serve(arguments: argparse.Namespace) -> int:
    flags = vars(arguments)
    config_file = flags.pop("config", None)
    logs_json = requested_log_format(flags, os.environ, config_file) == "json"
    try:
        settings = load_settings(flags, os.environ, config_file)
        flags.clear()
        for name in SECRETS:  # child processes and dumps of the environment must not show them
            os.environ.pop(variable_name(name), None)
        _serve_beside_engine(settings)
    except StartupError as error:
        if not logs_json:
            raise
        print(json_line(" ".join(str(error).split())), file=sys.stderr)
        return 1
    return 0


def _serve_beside_engine(settings: Settings) -> None:
    """Starts the engine's process before this one imports the rest: both take seconds, at the same time."""
    from server.engine.process import EngineProcess, allow_many_descriptors, open_standard_files

    open_standard_files()
    allow_many_descriptors()
    try:
        engine_process = EngineProcess()
    except OSError as error:
        raise StartupError(f"cannot start the engine process: {error}") from error
    with engine_process:
        from server.serve import serve

        serve(settings, engine_process)


def _check_config(arguments: argparse.Namespace) -> int:
    from tools.check_config import check_config

    flags = vars(arguments)
    print(check_config(flags, os.environ, flags.pop("config", None)))
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    print(completion(build_parser(), arguments.shell), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
