"""Every command and every Python block of README, CONTRIBUTING and docs/ runs.

The convention: blocks marked ``bash`` and ``python`` are executed, block by block, in one empty folder per page, the
Python blocks of a page in one namespace. A Python block that begins with ``# file: NAME`` is saved under that name
instead. A block below ``<!-- needs: cifar10 mnist -->`` runs only where these real data sets are. Blocks with another
mark are shown, not run; what they name of the Makefile must exist.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from stillroom.cli.main import GROUPS, VERBS, main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
    if ROOT / "docs/results" not in path.parents
)
BLOCK = re.compile(r"(?:^<!-- needs: (?P<needs>[\w -]+) -->\n+)?^```(?P<mark>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s]+)?(?:#([^)\s]+))?\)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    mark: str
    text: str
    line: int
    needs: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text"))
        yield Block(found["mark"], found["text"], line, tuple((found["needs"] or "").split()))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pages_with(*, data: bool) -> list[Path]:
    return [p for p in PAGES if any(b.mark in ("bash", "python") and bool(b.needs) == data for b in blocks(p))]


def commands(text: str) -> Iterator[str]:
    """Yield the commands of a shell block, continued lines joined and comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def run_shell(text: str) -> None:
    for command in commands(text):
        words = shlex.split(os.path.expandvars(command), comments=True)
        if words[0] == "stillroom" and not {"|", ">", "&&", "||"} & set(words):
            # In this process: importing torch for every command would take longer than the commands.
            assert main(words[1:]) == 0, f"exit code of: {command}"
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True)


def run_page(page: Path, chosen: list[Block], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = ModuleType("__docs__")
    for block in chosen:
        if block.mark == "bash":
            run_shell(block.text)
        elif found := re.match(r"# file: (\S+)\n", block.text):
            (folder / found[1]).write_text(block.text, encoding="utf-8")
        else:
            # Blank lines in front: a traceback then names the line of the page.
            exec(compile("\n" * block.line + block.text, name(page), "exec"), module.__dict__)


@pytest.mark.parametrize("page", pages_with(data=False), ids=name)
def test_every_block_of_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [block for block in blocks(page) if block.mark in ("bash", "python") and not block.needs]
    run_page(page, chosen, tmp_path, monkeypatch)


@pytest.mark.shared_data
@pytest.mark.parametrize("page", pages_with(data=True), ids=name)
def test_every_block_on_real_data_runs(
    page: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [block for block in blocks(page) if block.needs]
    absent = [data for block in chosen for data in block.needs if not (shared_data / data).is_dir()]
    if absent:
        pytest.skip(f"{shared_data} does not hold {', '.join(absent)}")
    monkeypatch.setenv("STILLROOM_DATA", str(shared_data.resolve()))
    run_page(page, chosen, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_say_what_they_are(page: Path) -> None:
    for block in blocks(page):
        assert block.mark in ("bash", "python", "console", "text", "yaml", "json"), f"{name(page)}:{block.line}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_that_are_only_shown_exist(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    for block in blocks(page):
        if block.mark != "console":
            continue
        for command in commands(block.text):
            tool, *rest = shlex.split(command.removeprefix("$ "), comments=True)
            if tool == "make":
                assert set(rest) <= targets, command
            elif tool == "pip":
                named = [extra for found in re.findall(r"\[([\w,-]+)\]", command) for extra in found.split(",")]
                assert set(named) <= set(extras), command
            elif tool == "stillroom":
                assert rest[0] in VERBS or rest[1] in GROUPS.get(rest[0], ()), command


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, heading in LINK.findall(BLOCK.sub("", text)):
        if target.startswith(("http://", "https://")):
            continue
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), f"{name(page)} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M)
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, f"{name(page)} links to {target}#{heading}"


def test_generated_pages_are_up_to_date() -> None:
    location = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert location is not None
    assert location.loader is not None
    generate = importlib.util.module_from_spec(location)
    location.loader.exec_module(generate)
    pages = generate.pages()
    stale = [name(path) for path, text in pages.items() if not path.is_file() or path.read_text("utf-8") != text]
    assert not stale, f"run python docs/generate.py: {', '.join(stale)}"
    left_over = set((ROOT / "docs/methods").glob("*.md")) - set(pages)
    assert not left_over, f"pages of methods that are gone: {left_over}"


@pytest.mark.parametrize("method", ["kd", "simkd"])
def test_the_example_loop_trains(method: str, tmp_path: Path) -> None:
    script = ROOT / "examples/own_loop.py"
    done = subprocess.run(
        [sys.executable, script, method, "--epochs", "1"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.search(r"accuracy: \d+\.\d\d %", done.stdout)
