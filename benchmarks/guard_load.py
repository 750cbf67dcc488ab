"""Latency the guard adds to an endpoint, at the same load, in one run: bare, with keys and limits, and with D-ADD.

python benchmarks/guard_load.py --model runs/guard [--rate 100] [--seconds 10] [--rounds 5] [--store redis://...]

``bare`` is a FastAPI application around the same network that decodes the same requests and checks nothing. Requests
arrive at a fixed rate on keep-alive connections over loopback, one image each, from honest accounts in turn; latency
counts from the moment a request was due. The three servers take turns, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel

from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data

ACCOUNTS = 8


class Asked(BaseModel):
    """The body of a request."""

    images: list[str]


def bare(model: str, port: int) -> None:
    """Serve the network as anybody would."""
    import torch
    import uvicorn
    from fastapi import FastAPI

    from stillroom.defense.contracts import softmax
    from stillroom.defense.endpoint import Endpoint

    torch.set_num_threads(1)
    endpoint = Endpoint.load(model)
    app = FastAPI()

    @app.post("/v1/predict")
    def predict(asked: Asked) -> dict[str, list[dict[str, object]]]:
        opened = [np.asarray(Image.open(io.BytesIO(base64.b64decode(part)))) for part in asked.images]
        images = np.stack([pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1) for pixels in opened])
        rows = softmax(endpoint(images).logits)
        names = endpoint.card.classes
        return {
            "predictions": [
                {
                    "label": names[int(row.argmax())],
                    "probabilities": dict(zip(names, row.round(6).tolist(), strict=True)),
                }
                for row in rows
            ]
        }

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def ask(port: int, requests: list[bytes], rate: float, seconds: float, connections: int) -> list[float]:
    """Send requests at a fixed rate and return the latencies in milliseconds."""
    due: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()
    latencies: list[float] = []

    async def worker() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (item := await due.get()) is not None:
            moment, request = item
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"the server said {head[:200]!r}")
            length = next(
                int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
            )
            await reader.readexactly(length)
            latencies.append(1000 * (time.perf_counter() - moment))
        writer.close()

    tasks = [asyncio.create_task(worker()) for _ in range(connections)]
    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        moment = start + number / rate
        await asyncio.sleep(max(0.0, moment - time.perf_counter()))
        due.put_nowait((moment, requests[number % len(requests)]))
    for _ in tasks:
        due.put_nowait(None)
    await asyncio.gather(*tasks)
    return latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/guard")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each server in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--store", default=None, help="redis://... instead of SQLite")
    options = parser.parse_args()
    pixels = load_data(DataOptions(name=options.data)).test.pixels.numpy()
    pixels = pixels[np.random.default_rng(0).permutation(len(pixels))[:1000]]
    with tempfile.TemporaryDirectory() as folder:
        run(options, pixels, Path(folder))


def run(options: argparse.Namespace, pixels: np.ndarray, folder: Path) -> None:
    stillroom = [sys.executable, "-m", "stillroom.cli.main", "defense", "serve", "--model", options.model]
    stores = {name: options.store or str(folder / f"{name}.sqlite") for name in ("keys and limits", "D-ADD")}
    keys = {
        name: [
            subprocess.run(
                [*stillroom, "--store", store, "--new_key", f"user-{number}"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            for number in range(ACCOUNTS)
        ]
        for name, store in stores.items()
    }
    ports = {name: free_port() for name in ("bare", *stores)}
    servers: list[subprocess.Popen[bytes] | multiprocessing.Process] = [
        multiprocessing.get_context("spawn").Process(target=bare, args=(options.model, ports["bare"]), daemon=True)
    ]
    servers[0].start()  # type: ignore[union-attr]
    for name, store in stores.items():
        rest = ["--defence", "none" if name == "keys and limits" else "d-add", "--per_minute", "1000000"]
        command = [*stillroom, "--store", store, "--port", str(ports[name]), "--burst", "1000000", *rest]
        servers.append(subprocess.Popen(command, stderr=open(folder / f"{name}.log", "wb")))  # noqa: SIM115
    requests: dict[str, list[bytes]] = {}
    for name, port in ports.items():
        wait_for(port)
        requests[name] = []
        for number, image in enumerate(pixels):
            out = io.BytesIO()
            shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            Image.fromarray(np.ascontiguousarray(shown)).save(out, format="PNG")
            body = json.dumps({"images": [base64.b64encode(out.getvalue()).decode()]}).encode()
            key = f"Authorization: Bearer {keys[name][number % ACCOUNTS]}\r\n" if name in keys else ""
            head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{key}"
            requests[name].append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    try:
        measure(options, ports, requests)
    finally:
        for server in servers:
            server.terminate()


def wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("a server did not start")


def measure(options: argparse.Namespace, ports: dict[str, int], requests: dict[str, list[bytes]]) -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ports}
    for number in range(options.rounds + 1):
        for name, port in ports.items():
            latencies = asyncio.run(ask(port, requests[name], options.rate, options.seconds, options.connections))
            if number:  # the first round warms up
                cuts = statistics.quantiles(latencies, n=100)
                found[name].append((cuts[49], cuts[98]))
    print(f"{options.rate:g} requests/s, {options.connections} connections, {os.cpu_count()} cores; median of rounds")
    print(f"{'server':<18}{'p50 [ms]':>10}{'p99 [ms]':>10}{'p50 / bare':>12}{'p50 / keys':>12}{'p99 - bare':>12}")
    for name, rounds in found.items():
        p50, p99 = (statistics.median(values) for values in zip(*rounds, strict=True))
        ratios = [
            statistics.median(own[0] / other[0] for own, other in zip(rounds, found[base], strict=True))
            for base in ("bare", "keys and limits")
        ]
        more = statistics.median(own[1] - other[1] for own, other in zip(rounds, found["bare"], strict=True))
        print(f"{name:<18}{p50:>10.2f}{p99:>10.2f}{ratios[0]:>12.3f}{ratios[1]:>12.3f}{more:>12.2f}")


if __name__ == "__main__":
    main()
