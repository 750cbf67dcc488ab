"""What the verbs' parsers share: short forms of option groups, one-line errors, choices looked up before parsing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser, Namespace

from stillroom.errors import InputError, nearest

__all__ = ["describe_group", "descriptions", "expand", "new_parser", "parse", "peek", "plain", "print_result"]


def new_parser(verb: str, description: str) -> ArgumentParser:
    """Return a parser with ``--config`` and ``--print_config`` that raises instead of exiting."""
    parser = ArgumentParser(prog=f"stillroom {verb}", description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of these options; later options win")
    return parser


def describe_group(parser: ArgumentParser, group: str, text: str) -> None:
    """Say in the help what ``--GROUP VALUE`` means (jsonargparse only knows that it may be a file)."""
    for action in parser._actions:
        if action.dest == group:
            action.metavar, action.help = "NAME", text


def descriptions(function: Any) -> dict[str, str]:
    """Return what a docstring says about each argument, in one line each."""
    found = parse_docstring(function.__doc__ or "").params
    return {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in found}


def expand(argv: Sequence[str], short: dict[str, str], lists: Collection[str] = ()) -> list[str]:
    """Turn ``--data digits`` into ``--data.name digits`` and ``--seeds 0,1`` into ``--seeds [0,1]``.

    A YAML file's path keeps its meaning.
    """
    expanded: list[str] = []
    arguments = list(argv)
    while arguments:
        word = arguments.pop(0)
        option, equals, value = word.partition("=")
        if option in short and (equals or arguments):
            value = value if equals else arguments.pop(0)
            is_file = value.endswith((".yaml", ".yml", ".json")) or value.startswith("{")
            expanded += [option if is_file else short[option], value]
        elif option in lists and (equals or arguments):
            value = value if equals else arguments.pop(0)
            expanded += [option, value if value.startswith("[") else f"[{value}]"]
        else:
            expanded.append(word)
    return expanded


def peek(argv: Sequence[str], option: str) -> str | None:
    """Return the value an option will get, from the command line or else from the ``--config`` file.

    Some options decide which others exist (a method's own hyperparameters), so they are read before parsing.
    """
    value: str | None = None
    arguments = list(argv)
    for position, word in enumerate(arguments):
        name, equals, inline = word.partition("=")
        following = inline if equals else arguments[position + 1] if position + 1 < len(arguments) else None
        if name == "--config" and following is not None:
            found: Any = _read_config(following)
            for key in option.removeprefix("--").split("."):
                found = found.get(key) if isinstance(found, dict) else None
            value = found if isinstance(found, str) else value
        if name == option and following is not None:
            value = following
    return value


def _read_config(file: str) -> Any:
    try:
        return yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise InputError(f"--config {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file} is not YAML: {' '.join(str(error).split())}") from None


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Parse, and turn whatever is wrong into one line that names the option.

    Raises:
        InputError: An option does not exist or has an impossible value.
    """
    try:
        return parser.parse_args(list(argv))
    except (argparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        message = " ".join(str(error).split())
        raise InputError(message + _nearest_option(parser, argv, message)) from None


def _nearest_option(parser: ArgumentParser, argv: Sequence[str], message: str) -> str:
    if "nrecognized" not in message and "does not exist" not in message and "not accepted" not in message:
        return ""
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    for word in argv:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            return nearest(name, known)
    return ""


def plain(options: Namespace) -> dict[str, Any]:
    """Return one option group as keyword arguments."""
    return dict(options.as_dict())


def print_result(result: dict[str, Any]) -> None:
    """Print a result as one JSON object on standard output."""
    print(json.dumps(result, ensure_ascii=False))
