"""``stillroom defense``: fit, attack, bench and serve on a small real classifier."""

from __future__ import annotations

import base64
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli.commands import ONE_THREAD, Commands, Ended
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.defense.guard import Guard
from stillroom.defense.service.sqlite_store import SQLiteStore
from stillroom.defense.traffic import noise_images

Here = Callable[..., Ended]
ADMIN = "an administrator's key of sufficient length"


@pytest.fixture(scope="module")
def guarded(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("guarded") / "guard"
    ended = commands.run("defense", "fit", "--epochs", 4, "--out", out, "--quiet")
    assert ended.code == 0, ended.err
    return out


def test_a_fitted_guard_tells_noise_from_digits_and_keeps_its_rate(guarded: Path) -> None:
    result = json.loads((guarded / "result.json").read_text())
    assert result["accuracy"] > 90
    assert result["separation"]["noise"]["auroc"] > 0.99
    assert result["calibration"]["low"] < 0.02
    assert {file.name for file in guarded.iterdir()} >= {"model.safetensors", "model.json", "guard.safetensors"}
    assert "Honest windows and strangers" in (guarded / "report.html").read_text()


def test_a_guards_configuration_makes_the_same_guard_again(commands: Commands, guarded: Path, tmp_path: Path) -> None:
    ended = commands.run("defense", "fit", "--config", guarded / "config.yaml", "--out", tmp_path / "again", "--quiet")
    assert ended.code == 0, ended.err
    for name in ("model.safetensors", "guard.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (guarded / name).read_bytes()


def test_a_guard_for_a_model_that_is_there_already(here: Here, guarded: Path, tmp_path: Path) -> None:
    ended = here("defense", "fit", "--model", guarded, "--window", 8, "--out", tmp_path / "second", "--quiet", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["window"] == 8
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == (guarded / "model.safetensors").read_bytes()


ATTACK = ("--queries", "generated", "--budget", 300, "--clone_epochs", 2)


def test_an_attack_is_worth_less_with_the_guard_and_a_killed_one_ends_the_same(
    commands: Commands, guarded: Path, tmp_path: Path
) -> None:
    options = ("defense", "attack", "--model", guarded, *ATTACK, "--json", "--quiet")
    whole = commands.run(*options, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    found = json.loads(whole.out)["defences"]
    assert found["none"]["altered"] == 0
    assert found["d-add"]["altered"] > 80
    assert found["d-add"]["first_detected"] == 16  # the window
    killed = commands.run(*options, "--out", tmp_path / "killed", step=13)  # of 5 an epoch: the second clone's first
    assert killed.code == -signal.SIGKILL
    assert [file.name for file in (tmp_path / "killed/cells").iterdir()] == ["none.json"]
    resumed = commands.run(*options, "--out", tmp_path / "killed", "--resume")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["defences"] == found


def test_a_bench_measures_detection_honest_users_and_clones_and_goes_on_where_it_was(
    here: Here, tmp_path: Path
) -> None:
    out = tmp_path / "bench"
    options = ("--defences", "none,d-add,energy,prada,reverse-sigmoid,am,edm", "--queries", "noise,own", "--labels")
    small = ("soft", "--budget", 60, "--clone_epochs", 1, "--accounts", 5, "--asked", 32, "--epochs", 3)
    few = ("--data.per_class", 30, "--peer_epochs", 1, "--quiet", "--out", out)
    # PRADA needs more than a hundred queries; accounts of 32 are refused in one line.
    ended = here("defense", "bench", *options, *small, *few)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "too short for the detector" in ended.err
    assert list((out / "cells").glob("*.json"))
    rest = ("--defences", "none,d-add,energy,reverse-sigmoid,am,edm", "--resume", "--json")
    ended = here("defense", "bench", *options, *small, *few, *rest)
    assert ended.code == 0, ended.err
    records = json.loads(ended.out)["records"]
    assert {record["kind"] for record in records} == {"detection", "honest", "theft"}
    noise = next(r for r in records if (r["kind"], r["queries"], r["defence"]) == ("detection", "noise", "d-add"))
    own = next(r for r in records if (r["kind"], r["queries"], r["defence"]) == ("detection", "own", "d-add"))
    assert noise["auroc"] > 0.95
    assert 0.2 < own["auroc"] < 0.8  # nobody can tell a thief who asks what honest users ask
    assert len([record for record in records if record["kind"] == "theft"]) == 2 * 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("fit", "--window", 400), "too few for windows of 400"),
        (("fit", "--target_fpr", 2), "target_fpr is 2"),
        (("attack", "--attack", "nokoff"), "did you mean 'knockoff'?"),
        (("attack", "--url", "http://example.org"), "is not on this machine"),
        (("attack", "--url", "http://127.0.0.1:9", "--attack", "dfme"), "attack in process"),
        (("attack", "--url", "http://127.0.0.1:99999"), "is not on this machine"),
        (("attack", "--model", "nowhere"), "nowhere"),
        (("bench", "--defences", "dadd"), "did you mean 'd-add'?"),
        (("bench", "--asked", 4), "never fill a window"),
        (("serve", "--model", "nowhere"), "stillroom defense fit"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    here: Here, tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    verb, *rest = options
    out = () if verb == "serve" else ("--out", tmp_path / "run", "--quiet", "--epochs", 1)
    ended = here("defense", verb, *rest, *(out if verb in ("fit", "bench") else out[:3]))
    assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
    assert said in ended.err


@contextmanager
def serving(guarded: Path, store: Path) -> Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """A service in a process of its own: its address, the key of one account, the process."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "stillroom", "defense", "serve", "--model", str(guarded), "--store", str(store)]
    environment = {**ONE_THREAD, "STILLROOM_ADMIN_KEY": ADMIN}
    made = subprocess.run([*command, "--new_key", "alice"], capture_output=True, text=True, check=True, env=environment)
    server = subprocess.Popen([*command, "--port", str(port)], env=environment, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{address}/readyz", timeout=5)
            break
        except OSError:
            assert server.poll() is None
            time.sleep(0.1)
    try:
        yield address, made.stdout.strip(), server
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM, -signal.SIGKILL)


@pytest.fixture(scope="module")
def service(guarded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with serving(guarded, tmp_path_factory.mktemp("store") / "accounts.sqlite") as (address, key, _):
        yield address, key


def asked(service: tuple[str, str], images: np.ndarray, key: str | None = None) -> Any:
    parts = []
    for image in images:
        out = io.BytesIO()
        Image.fromarray(image[0]).save(out, format="PNG")
        parts.append(base64.b64encode(out.getvalue()).decode())
    request = urllib.request.Request(f"{service[0]}/v1/predict", json.dumps({"images": parts}).encode())
    request.add_header("Content-Type", "application/json")
    request.add_header("Authorization", f"Bearer {key or service[1]}")
    return json.loads(urllib.request.urlopen(request, timeout=30).read())["predictions"]


def test_a_served_classifier_answers_digits_and_poisons_a_thief(service: tuple[str, str]) -> None:
    data = load_data(DataOptions())
    order = np.random.default_rng(0).permutation(len(data.test))[:32]
    pixels, labels = data.test.pixels.numpy()[order], data.test.target.numpy()[order]  # type: ignore[union-attr]
    told = [prediction["label"] for prediction in asked(service, pixels)]
    assert np.mean([said == str(label) for said, label in zip(told, labels, strict=True)]) > 0.8
    strange = noise_images(data.shape, 20)
    asked(service, strange)
    poisoned = asked(service, strange)
    assert asked(service, strange) == poisoned  # the same query, the same answer
    request = urllib.request.Request(f"{service[0]}/v1/admin/accounts", headers={"Authorization": f"Bearer {ADMIN}"})
    told_to_admin = json.loads(urllib.request.urlopen(request).read())
    account = told_to_admin["accounts"][0]
    assert (account["name"], account["queries"]) == ("alice", 92)
    assert account["poisoned"] >= 40
    with pytest.raises(urllib.error.HTTPError, match="401"):
        asked(service, strange[:1], key="sr_0000000000000000_" + "x" * 43)


def test_an_attack_over_http_that_is_killed_asks_nothing_twice(service: tuple[str, str], tmp_path: Path) -> None:
    before = asked_of(service, "alice")
    options = ("--url", service[0], "--budget", 100, "--clone_epochs", 2, "--out", tmp_path / "attack", "--quiet")
    command = [sys.executable, "-m", "stillroom", "defense", "attack", *map(str, options)]
    environment = {**ONE_THREAD, "STILLROOM_API_KEY": service[1]}
    attack = subprocess.Popen(command, env=environment)
    while not list((tmp_path / "attack/queries").glob("part-*")):
        assert attack.poll() is None
        time.sleep(0.01)
    attack.kill()
    attack.wait()
    done = subprocess.run([*command, "--resume", "--json"], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["defences"]["endpoint"]["asked"] == 100
    assert asked_of(service, "alice") == before + 100


def asked_of(service: tuple[str, str], account: str) -> int:
    request = urllib.request.Request(
        f"{service[0]}/v1/admin/accounts/{account}", headers={"Authorization": f"Bearer {ADMIN}"}
    )
    return int(json.loads(urllib.request.urlopen(request).read())["queries"])


def test_a_service_killed_under_load_has_the_evidence_of_every_query_it_answered(guarded: Path, tmp_path: Path) -> None:
    strange = noise_images((1, 8, 8), 40)
    place = tmp_path / "accounts.sqlite"
    answered: list[int] = []
    with serving(guarded, place) as (address, key, server):

        def ask(client: int) -> None:
            try:
                for number in range(1000):
                    asked((address, key), strange[(10 * client + number) % 40][None])
                    answered.append(client)
            except (OSError, http.client.HTTPException):
                pass  # it was killed

        with ThreadPoolExecutor(4) as clients:
            running = [clients.submit(ask, client) for client in range(4)]
            while len(answered) < 50:
                time.sleep(0.01)
            server.kill()
            for one in running:
                one.result()
    guard = Guard.load(guarded)
    store = SQLiteStore(place, size=guard.window, width=guard.width, identity=guard.identity)
    window = store.append("alice", np.zeros((1, guard.width)), np.zeros(1, np.int64))
    store.close()
    # At most the four requests that were under way are there without an answer.
    assert len(answered) <= window.total - 1 <= len(answered) + 4
    assert len(window.classes) == guard.window
