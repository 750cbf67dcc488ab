"""The job of ``stillroom defense attack``: steal a classifier of one's own, with its guard and without."""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from stillroom.data.images import ImageData, TensorImages
from stillroom.defense.arena import Undefended
from stillroom.defense.attacks.collusion import colluding
from stillroom.defense.attacks.target import Ask, BudgetSpent, Labels, Target
from stillroom.defense.attacks.transfer import Recorded
from stillroom.defense.contracts import Floats, Images
from stillroom.defense.endpoint import Endpoint
from stillroom.defense.fit import fit_guard
from stillroom.defense.guard import FILE, Guard
from stillroom.defense.theft import DATA_FREE, Thief, accuracy_on
from stillroom.defense.traffic import OWN, Traffic, halves, load_traffic
from stillroom.defense.windows import MemoryWindows
from stillroom.errors import FailureError, InputError
from stillroom.models.store import weights_hash
from stillroom.reports.page import Page, Section, environment, write_page
from stillroom.reports.tables import Column, Table
from stillroom.training.fabric import Device, make_fabric, torch_device
from stillroom.training.jobs import kept
from stillroom.training.run import RunDirectory

__all__ = ["Attacked", "HTTPTarget", "attack_classifier"]

REQUEST = 16  # images of a request over HTTP
PATIENCE = 60.0  # seconds a request may wait for a rate limit


@dataclass(frozen=True)
class Attacked:
    """What :func:`attack_classifier` returns."""

    table: Table
    result: dict[str, Any]
    out: Path


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nobody: the key is for this machine."""

    def redirect_request(self, *args: Any, **rest: Any) -> None:
        return None


# Without the environment's proxies, for the same reason.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)


class HTTPTarget:
    """A guarded endpoint on this machine, asked over HTTP with one account's key.

    Args:
        url: Of the service, on a loopback address: attacks are for endpoints one owns.
        key: The account's API key.
        classes: Class names, in the clone's order.
        budget: Queries to make.

    Raises:
        InputError: The address is not a loopback one, or there is no key.
    """

    def __init__(self, url: str, key: str, classes: tuple[str, ...], *, budget: int) -> None:
        self.url, self._key, self.classes, self.budget = loopback(url), key, classes, budget
        self.spent = 0
        if not key:
            raise InputError("asking a guarded endpoint needs an account's key; name the variable that holds it")

    def ask(self, images: Images) -> Floats:
        """Return the answers [B, K] to 8-bit images [B, C, H, W].

        Raises:
            BudgetSpent: So many queries are not left; none was made.
            InputError: The images are not 8-bit, which HTTP cannot carry, or the service refuses them.
            FailureError: The service does not answer.
        """
        if len(images) > self.budget - self.spent:
            raise BudgetSpent(self.budget - self.spent)
        if images.dtype != np.uint8:
            raise InputError("this attack sends images between the 256 levels of a pixel, which no endpoint takes")
        parts = [self._request(images[start : start + REQUEST]) for start in range(0, len(images), REQUEST)]
        return np.concatenate(parts)

    def _request(self, images: Images) -> Floats:
        body = json.dumps({"images": [_png(image) for image in images]}).encode()
        request = urllib.request.Request(f"{self.url}/v1/predict", body, {"Content-Type": "application/json"})
        request.add_header("Authorization", f"Bearer {self._key}")
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with _OPENER.open(request, timeout=30) as response:
                    said = json.loads(response.read())
                break
            except urllib.error.HTTPError as error:
                wait = float(error.headers.get("Retry-After") or 1)
                if error.code not in (429, 503) or time.monotonic() + wait > deadline:
                    detail = error.read(500).decode(errors="replace")
                    raise InputError(f"{self.url} refuses the request ({error.code}): {detail}") from None
                time.sleep(wait)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise FailureError(f"{self.url} does not answer: {error}") from None
        self.spent += len(images)
        try:
            rows = [self._row(prediction) for prediction in said["predictions"]]
        except (KeyError, TypeError, AttributeError):
            rows = []
        if len(rows) != len(images):
            raise InputError(f"{self.url} does not answer as stillroom defense serve does; name its address")
        return np.stack(rows)

    def _row(self, prediction: Mapping[str, Any]) -> Floats:
        told = prediction.get("probabilities") or {prediction["label"]: 1.0}
        if set(told) - set(self.classes):
            raise InputError(f"{self.url} answers with classes the data does not have; name the data of its model")
        row = np.array([float(told.get(name, 0.0)) for name in self.classes])
        return np.asarray(row / row.sum())


def loopback(url: str) -> str:
    """Return the address without a trailing slash.

    Raises:
        InputError: It is not on a loopback address.

    Example:
        >>> loopback("http://127.0.0.1:8000/")
        'http://127.0.0.1:8000'
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        own = (host == "localhost" or ipaddress.ip_address(host).is_loopback) and parts.port != 0
    except ValueError:
        own = False
    if parts.scheme != "http" or not own:
        raise InputError(f"{url} is not on this machine; attacks only ask endpoints at http://127.0.0.1 or localhost")
    return url.rstrip("/")


def attack_classifier(
    data: ImageData,
    *,
    model: str | None = None,
    url: str | None = None,
    key: str = "",
    attack: str = "knockoff",
    queries: str = "generated",
    budget: int = 500,
    labels: Labels = "soft",
    colluders: int = 1,
    clone: str = "resnet8",
    clone_epochs: int = 10,
    seed: int = 0,
    device: Device = "auto",
    out: str | Path = "runs/attack",
    config: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Attacked:
    """Steal a classifier of one's own, with its guard and without, and say what the clones are worth.

    Half of the test images belong to the thief (``queries own``); clones are measured on the other half.

    Args:
        data: What the classifier was trained on.
        model: Directory that ``stillroom defense fit`` wrote; a small classifier is guarded first when not given.
        url: Ask a guarded endpoint on this machine instead, over HTTP.
        key: The account's key for that.
        attack: The attack; see ``ATTACKS``.
        queries: What attacks with images ask: own, noise, generated, digits-dg, pacs-small, or a data set.
        budget: Queries, in images.
        labels: What the victim answers in this process: soft (probabilities) or hard (the class alone).
        colluders: Accounts that split the queries.
        clone: Architecture of the clone.
        clone_epochs: Epochs of its training on the answers.
        seed: Seed of every draw.
        device: Where to compute.
        out: The run directory; what was asked over HTTP is kept there, so that no query is made twice.
        config: The options as the command line knows them, kept in ``config.yaml``.
        show_progress: Show progress on standard error.
        resume: Continue a killed attack in ``out``.
        overwrite: Replace a finished run in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        FailureError: The endpoint does not answer.
        OutputError: A result could not be written.
    """
    thief = Thief(attack, clone, budget, clone_epochs, seed)
    if url is not None:
        url = loopback(url)
        if attack in DATA_FREE:
            raise InputError(f"{attack} needs images between the 256 levels of a pixel; attack in process, without url")
    if url is not None and colluders > 1:
        raise InputError("over HTTP there is one key, so one account; colluders are for attacks in process")
    asked = {"attack": attack, "queries": queries, "budget": budget, **(config or {}), "out": str(out)}
    run = RunDirectory.create(out, asked, overwrite=overwrite, resume=resume)
    if not isinstance(data.test, TensorImages):
        raise InputError("the test images do not fit in memory; take smaller ones with data.image_size")
    own, honest = halves(data.test, len(data.classes), seed=seed)
    if queries == OWN or attack in DATA_FREE:
        traffic = Traffic(own.pixels.numpy(), own.target.numpy())
    else:
        traffic = load_traffic(queries, data.shape, budget, seed=seed)
    targets: dict[str, Callable[[], tuple[Ask, Target | HTTPTarget]]] = {}
    victim = np.full(len(honest), -1)
    if url is not None:
        target = HTTPTarget(url, key, data.classes, budget=budget)
        recorded = Recorded(target.ask, run.path / "queries")
        target.spent = recorded.paid
        targets["endpoint"] = lambda: (recorded, target)
    else:
        endpoint, guard = _guarded(data, model, run, device, seed, show_progress)
        victim = endpoint.observe(honest.pixels.numpy()).logits.argmax(1)
        for name in ("none", "d-add"):
            targets[name] = lambda name=name: _in_process(  # type: ignore[misc]
                endpoint, guard if name == "d-add" else None, budget, labels, colluders
            )
    measure = accuracy_on(honest.pixels.numpy(), honest.target.numpy(), victim)
    found: dict[str, dict[str, Any]] = {}
    for name, make in targets.items():

        def attacked(make: Callable[[], tuple[Ask, Target | HTTPTarget]] = make) -> dict[str, Any]:
            ask, counted = make()
            stolen = thief.steal(ask, data, traffic, labels, fabric=make_fabric(device), show_progress=show_progress)
            stolen.model.eval()
            with torch.inference_mode():
                worth = measure(stolen.model)
            return {"clone_accuracy": worth["test_accuracy"], **_noticed(counted, worth["agreement"])}

        found[name] = kept(run.path / "cells" / f"{name}.json", attacked)
    columns = [
        *(Column("defence"), Column("clone [%]", ".2f"), Column("agreement [%]", ".2f")),
        *(Column("answers altered [%]", ".1f"), Column("first at query", "d"), Column("asked", "d")),
    ]
    table = Table(columns, [[name, *record.values()] for name, record in found.items()])
    accuracy = None if url else 100 * float((victim == honest.target.numpy()).mean())
    result = {
        "attack": attack,
        "queries": queries,
        "labels": labels,
        "budget": budget,
        "colluders": colluders,
        "clone": clone,
        "victim_accuracy": accuracy,
        "defences": found,
        "seed": seed,
        "out": str(run.path),
    }
    run.write_result(result)
    clones = "; ".join(f"clone {record['clone_accuracy']:.2f} % ({name})" for name, record in found.items())
    page = Page(
        kind="attack",
        title=f"{attack} against {'an endpoint' if url else 'a classifier'} for {data.name}",
        headline=clones if accuracy is None else f"Victim {accuracy:.2f} %; {clones}",
        sections=[Section(title="What was stolen", parts=[table], note="Agreement: same answer as the victim.")],
        config=asked,
        environment=environment(),
    )
    write_page(run.report, page)
    return Attacked(table, result, run.path)


def _guarded(
    data: ImageData, model: str | None, run: RunDirectory, device: Device, seed: int, show_progress: bool
) -> tuple[Endpoint, Guard]:
    place = Path(model) if model else run.path / "victim"
    if not model and not (place / FILE).is_file():
        fit_guard(data, seed=seed, device=device, out=place, show_progress=show_progress, overwrite=place.exists())
    endpoint = Endpoint.load(place, device=torch_device(device))
    if endpoint.card.classes != data.classes:
        raise InputError(f"{place} was not trained on {data.name}: its classes are others; name its data")
    return endpoint, Guard.load(place, weights_sha256=weights_hash(endpoint.model))


def _in_process(
    endpoint: Endpoint, guard: Guard | None, budget: int, labels: Labels, colluders: int
) -> tuple[Ask, Target]:
    defence = Undefended() if guard is None else guard.defence(MemoryWindows(guard.window), b"known to nobody but us")
    target = Target(endpoint, defence, budget=budget, labels=labels, accounts=colluding(colluders))
    return target.ask, target


def _noticed(counted: Target | HTTPTarget, agreement: float) -> dict[str, Any]:
    """Return what is known of the victim's side; over HTTP only how often it was asked."""
    if isinstance(counted, HTTPTarget):
        return {"agreement": None, "altered": None, "first_detected": None, "asked": counted.spent}
    altered = 100 * counted.altered / max(counted.spent, 1)
    return {
        "agreement": agreement,
        "altered": altered,
        "first_detected": counted.first_detected,
        "asked": counted.spent,
    }


def _png(image: Images) -> str:
    from PIL import Image

    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()
