"""The command `qwen-server`; `python -P -m server` is the same.

Only reads arguments: each subcommand lives in a module of its own, imported when it is asked for.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from model.contract.errors import StartupError
from server.cli.command_line import SHELLS, Parser, command_names, completion
from server.cli.published_flags import names_checkpoint, translate
from server.hub_download import add_hub_arguments
from server.logs import json_line
from server.settings import Settings, TokensOrContext, flag_name, is_repeatable
from server.settings_sources import load_settings, wished_log_format
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
from tools.quantize import options as quantize_options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: without the program's name; None takes the process's.

    Returns:
        The exit status.
    """
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
    arguments = vars(parser.parse_args(words))
    if "command" not in arguments:
        parser.error("name a COMMAND")
    command = arguments.pop("command")
    if server_flags:
        arguments["server_flags"] = server_flags
    try:
        return int(command(arguments))
    except StartupError as error:
        print(f"qwen-server: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads, `head` perhaps, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


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
    chat = subparsers.add_parser("chat", help="chat in the terminal", description=chat_arguments.DESCRIPTION)
    chat_arguments.add_arguments(chat)
    chat.set_defaults(command=_chat)
    batch = subparsers.add_parser(
        "batch", help="do the requests of a file, without a server", description=batch_arguments.DESCRIPTION
    )
    batch_arguments.add_arguments(batch)
    batch.set_defaults(command=_batch)
    bench = subparsers.add_parser("bench", help="measure a server under load", description=bench_arguments.DESCRIPTION)
    bench_arguments.add_arguments(bench)
    bench.set_defaults(command=_bench)
    check = subparsers.add_parser(
        "check-config",
        help="show the settings `serve` would use, and where each comes from",
        description="Takes what `serve` takes; prints the settings, or one line about what is wrong with them.",
        argument_default=argparse.SUPPRESS,
    )
    add_settings(check)
    check.set_defaults(command=_check_config)
    _add_tools(subparsers)
    return parser


class _ShowVersion(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Prints it and ends."""
        from server.version import server_version

        print(f"qwen-server {server_version()}")
        parser.exit()


def _add_tools(subparsers: Any) -> None:
    """Adds what works on checkpoints and servers without being one."""
    evaluation = subparsers.add_parser(
        "eval",
        help="measure tool calls or chat on any OpenAI-compatible server",
        description="Asks a server the cases of a suite, temperature 0, and prints how many replies are right.",
    )
    evaluation_command.add_arguments(evaluation)
    evaluation.set_defaults(command=evaluation_command.run)
    memory = subparsers.add_parser(
        "memory",
        help="tell how much memory a checkpoint takes, without loading it",
        description="Reckons weights, KV cache and what fits into a device, from config.json alone.",
    )
    memory_command.add_arguments(memory)
    memory.set_defaults(command=memory_command.run)
    look = subparsers.add_parser(
        "doctor",
        help="look at this machine: versions, devices, kernels, and what to do about what is not well",
        description="Prints versions and devices, tries and times the kernels, and says what to do about what is not"
        " well. The status is 1 where something does not work.",
    )
    doctor.add_arguments(look)
    look.set_defaults(command=doctor.run)
    quantize = subparsers.add_parser(
        "quantize",
        help="make an Int4 or Int8 checkpoint from an unquantised one",
        description="GPTQ in the published layout, layer by layer; on a GPU where there is one.",
    )
    quantize_options.add_arguments(quantize)
    add_hub_arguments(quantize)
    quantize.set_defaults(command=_quantize)
    convert = subparsers.add_parser(
        "convert",
        help="write a checkpoint in transformers' Qwen2 layout, or back",
        description="The same weights under the names that current tools know, a block at a time, with tokenizer files"
        " that give the same ids; --to qwen is the way back.",
    )
    convert_options.add_arguments(convert)
    add_hub_arguments(convert)
    convert.set_defaults(command=_convert)
    merge = subparsers.add_parser(
        "merge",
        help="fold a LoRA adapter into the checkpoint it was trained on",
        description="Writes a whole checkpoint in the published layout; a quantised one is expanded.",
    )
    merge_options.add_arguments(merge)
    add_hub_arguments(merge)
    merge.set_defaults(command=_merge)
    export = subparsers.add_parser(
        "export", help="write a checkpoint as a GGUF file for llama.cpp", description=export_options.DESCRIPTION
    )
    export_options.add_arguments(export)
    add_hub_arguments(export)
    export.set_defaults(command=_export)
    train = subparsers.add_parser(
        "finetune",
        help="train an adapter, or all weights, on conversations",
        description="LoRA, Q-LoRA or all weights, with the published defaults; what it writes serve takes, by --lora or"
        " as MODEL. Needs the extra finetune.",
    )
    finetune_options.add_arguments(train)
    add_hub_arguments(train)
    train.set_defaults(command=_finetune)
    shell = subparsers.add_parser(
        "completion",
        help="print what makes a shell complete this command's words",
        description='In ~/.bashrc: eval "$(qwen-server completion bash)"; in ~/.zshrc the same with zsh. For fish:'
        " qwen-server completion fish > ~/.config/fish/completions/qwen-server.fish",
    )
    shell.add_argument("shell", choices=SHELLS)
    shell.set_defaults(command=_completion)


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
    """Shows the choices of a setting, or what kind of value it takes."""
    choices = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "{" + ",".join(choices) + "}"
    if TokensOrContext in choices:
        return "N|context"
    numeric = {int, float}.intersection((annotation, *choices))
    return "N" if numeric else "VALUE"


def _serve(arguments: dict[str, Any]) -> int:
    from server.serve import serve

    config_file = arguments.pop("config", None)
    logs_json = wished_log_format(arguments, os.environ, config_file) == "json"
    try:
        settings = load_settings(arguments, os.environ, config_file)
        arguments.clear()
        serve(settings)
    except StartupError as error:
        if not logs_json:
            raise
        print(json_line(" ".join(str(error).split())), file=sys.stderr)
        return 1
    return 0


def _chat(arguments: dict[str, Any]) -> int:
    from tools.chat.command import run

    return run(argparse.Namespace(**arguments))


def _batch(arguments: dict[str, Any]) -> int:
    from tools.batch.command import run

    return run(argparse.Namespace(**arguments))


def _bench(arguments: dict[str, Any]) -> int:
    from tools.bench.command import run

    return run(argparse.Namespace(**arguments))


def _check_config(arguments: dict[str, Any]) -> int:
    from tools.check_config import check_config

    print(check_config(arguments, os.environ, arguments.pop("config", None)))
    return 0


def _completion(arguments: dict[str, Any]) -> int:
    print(completion(build_parser(), arguments["shell"]), end="")
    return 0


def _convert(arguments: dict[str, Any]) -> int:
    from tools.convert.command import run

    return run(arguments)


def _finetune(arguments: dict[str, Any]) -> int:
    from tools.finetune.command import run

    return run(arguments)


def _merge(arguments: dict[str, Any]) -> int:
    from tools.merge.command import run

    return run(arguments)


def _quantize(arguments: dict[str, Any]) -> int:
    from tools.quantize.command import run

    return run(arguments)


def _export(arguments: dict[str, Any]) -> int:
    from tools.export.command import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
