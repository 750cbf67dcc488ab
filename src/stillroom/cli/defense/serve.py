"""``stillroom defense serve``: parse, open the store, serve; or make an account's key."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from stillroom.cli._job import Group
from stillroom.cli._parser import add_config, new_parser, parse, read_configs
from stillroom.defense.guard import FILE, Guard
from stillroom.defense.poison import Style
from stillroom.defense.serve import ADMIN_KEY, Protection, add_account, open_service, open_store, serve
from stillroom.defense.service.settings import Reply
from stillroom.errors import InputError
from stillroom.training.fabric import Device

__all__ = ["build_parser", "run"]

DESCRIPTION = "Serve a classifier over HTTP with a guard against model stealing in front."
DEFAULT = Path("runs/guard")
KINDS = {
    "defence": Protection,
    "link": bool,
    "poison": Style,
    "answers": Reply,
    "top_k": int,
    "per_minute": float,
    "burst": int,
    "max_body": int,
    "workers": int | None,
    "device": Device,
}


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser("defense serve", DESCRIPTION)
    add_config(parser)
    what = parser.add_argument_group("service")
    text = "directory that stillroom defense fit wrote; a small guarded classifier of digits is made when there is none"
    what.add_argument("--model", type=str, default=str(DEFAULT), help=text).metavar = "DIR"
    text = "where accounts are kept: a SQLite file, or redis://HOST:PORT/N for several replicas [in the model's folder]"
    what.add_argument("--store", type=str | None, default=None, help=text).metavar = "PLACE"
    what.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on")
    what.add_argument("--port", type=int, default=8000, help="port to listen on")
    text = "make an API key for this account, print it once, and end"
    what.add_argument("--new_key", type=str | None, default=None, help=text).metavar = "ACCOUNT"
    group = Group(parser, "guard", open_service)
    for name, kind in KINDS.items():
        if kind is bool:
            group.yes_no(name)
        else:
            group.add(name, kind)
    return parser


def run(argv: Sequence[str]) -> int:
    """Serve until interrupted, or make a key."""
    options = parse(build_parser(), read_configs(argv, {}))
    model = Path(options.model)
    if not (model / FILE).is_file():
        if model != DEFAULT:
            raise InputError(f"{model} holds no guard; make one with: stillroom defense fit --model {model}")
        _fit_default()
    guard = Guard.load(model)
    store = open_store(options.store, guard, model)
    if options.new_key is not None:
        try:
            print(add_account(store, options.new_key))
        finally:
            store.close()
        return 0
    opened = open_service(model, store, **{name: options[name] for name in KINDS})
    address = f"http://{options.host}:{options.port}"
    print(f"serving {model} at {address}/v1/predict   administrator: {address}/admin", file=sys.stderr)
    if opened.admin_key is not None:
        print(
            f"administrator's key, shown this once: {opened.admin_key}   (or set {ADMIN_KEY} yourself)", file=sys.stderr
        )
    serve(opened.app, host=options.host, port=options.port)
    return 0


def _fit_default() -> None:
    from stillroom.data.options import DataOptions
    from stillroom.data.sources import load_data
    from stillroom.defense.fit import fit_guard

    print(f"there is no guard at {DEFAULT}: fitting one for a small classifier of digits", file=sys.stderr)
    fit_guard(load_data(DataOptions()), out=DEFAULT)
