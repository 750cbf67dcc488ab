"""What the verbs' parsers share: short forms of option groups, configuration files, one-line errors."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from stillroom.cli._help import Formatter, expected, kinds_of
from stillroom.errors import InputError, nearest

__all__ = ["add_config", "expand", "new_parser", "parse", "peek", "plain", "read_configs", "words"]


def new_parser(verb: str, description: str, usage: str = "") -> ArgumentParser:
    """Return a parser that raises instead of exiting."""
    return ArgumentParser(
        prog=f"stillroom {verb}",
        usage=f"stillroom {verb} {usage}[options]",
        description=description,
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,
        add_help=True,
    )


def add_config(parser: ArgumentParser) -> None:
    """Add ``--config`` and ``--print_config``."""
    text = "YAML file with any of these options, such as a run's config.yaml; options that follow win"
    parser.add_argument("--config", action="config", metavar="FILE", help=text)
    for action in parser._actions:
        if "--print_config" in action.option_strings:
            action.metavar, action.help = "", "print all options as YAML, ready for --config, and exit"


def expand(argv: Sequence[str], short: Mapping[str, str], lists: Collection[str] = ()) -> list[str]:
    """Turn ``--data digits`` into ``--data.name digits`` and ``--methods kd,at`` into ``--methods ["kd", "at"]``.

    A YAML file's path keeps its meaning.
    """
    expanded: list[str] = []
    for option, value in words(argv):
        if value is not None and option in short:
            is_file = value.endswith((".yaml", ".yml", ".json")) or value.startswith("{")
            expanded += [option if is_file else short[option], value]
        elif value is not None and option in lists:
            expanded += [option, value if value.startswith("[") else _listed(value)]
        else:
            expanded += [option] if value is None else [option, value]
    return expanded


def _listed(value: str) -> str:
    items = [item.strip() for item in value.split(",") if item.strip()]
    return json.dumps(items)


def words(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield every option with its value (``None`` without one), and every other word alone."""
    arguments = list(argv)
    while arguments:
        word = arguments.pop(0)
        option, equals, value = word.partition("=")
        if not word.startswith("--"):
            yield word, None
        elif equals:
            yield option, value
        elif arguments and not arguments[0].startswith("--"):
            yield word, arguments.pop(0)
        else:
            yield word, None


def read_configs(argv: Sequence[str], short: Mapping[str, str]) -> list[str]:
    """Put the content of every ``--config`` file in its place, with the short forms spelled out.

    Raises:
        InputError: A file is not there, is no YAML, or holds something else than options.
    """
    replaced: list[str] = []
    for option, value in words(argv):
        if option == "--config" and value is not None and not value.startswith("{"):
            config = _read(value)
            for group, full in short.items():
                name, inner = group.removeprefix("--"), full.rpartition(".")[2]
                if isinstance(config.get(name), str):
                    config[name] = {inner: config[name]}
            value = json.dumps(config)
        replaced += [option] if value is None else [option, value]
    return replaced


def _read(file: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"--config {file} is not a text file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise InputError(f"--config {file} is not YAML: {getattr(error, 'problem', None) or error}{where}") from None
    if not isinstance(found, dict):
        raise InputError(f"--config {file} holds no options; write them as lines of NAME: VALUE")
    return found


def peek(argv: Sequence[str], option: str) -> str | None:
    """Return the value an option will get, from the command line or a configuration :func:`read_configs` put there.

    Some options decide which others exist (a method's own hyperparameters), so they are read before parsing.
    """
    value: str | None = None
    for name, found in words(argv):
        if name == "--config" and found is not None:
            inner: Any = json.loads(found)
            for key in option.removeprefix("--").split("."):
                inner = inner.get(key) if isinstance(inner, dict) else None
            value = inner if isinstance(inner, str) else value
        elif name == option and found is not None:
            value = found
    return value


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Parse, and turn whatever is wrong into one line that names the option.

    Raises:
        InputError: An option does not exist or has an impossible value.
    """
    try:
        return parser.parse_args(list(argv))
    except InputError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        raise InputError(_one_line(parser, " ".join(str(error).split()))) from None


def _one_line(parser: ArgumentParser, message: str) -> str:
    """Say in words what jsonargparse says in types."""
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        word = found[1].partition("=")[0]
        return _unknown(parser, word) if word.startswith("--") else f"unexpected argument {word!r}"
    if found := re.search(r"Option '(\S+)' is not accepted", message):
        return _unknown(parser, f"--{found[1]}")
    if found := re.search(r"Group '(\S+)' does not accept option '(\S+)'", message):
        return _unknown(parser, f"--{found[1]}.{found[2]}")
    action = None
    if found := re.search(r"Parser key \"([^\"]+)\"", message):
        action = next((action for action in parser._actions if action.dest == found[1]), None)
    if action is None or not expected(action):
        return message.removeprefix("argument ")
    name = action.option_strings[0] if action.option_strings else action.dest.upper()
    given = re.search(r"(?:Got value|Given value|value): (?!.*(?:Got value|Given value): )(.*)$", message)
    value = f" {given[1]}" if given else ""
    hint = nearest(given[1], map(str, kinds_of(action)[0])) if given else ""
    return f"{name}{value}: expected {expected(action)}{hint}"


def _unknown(parser: ArgumentParser, word: str) -> str:
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    group, dot, inner = word.partition(".")
    own = [option.partition(".")[2] for option in known if option.startswith(f"{group}.")]
    if not dot or not own:
        return f"unknown option {word!r}" + (nearest(word, known) or f"; {parser.prog} --help lists them")
    close = nearest(inner, own).replace("'", f"'{group}.", 1)
    return f"unknown option {word!r}" + (close or f"; known: {', '.join(f'{group}.{name}' for name in own)}")


def plain(options: Namespace) -> dict[str, Any]:
    """Return one option group as keyword arguments."""
    return dict(options.as_dict())
