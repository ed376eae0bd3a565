"""A thousand clients at once against `trtx serve`, some of which leave in the middle; for benchmarks/runtime.py.

The server is a process of its own. There are two waves of such clients: what the second one adds to the server's memory
is what it does not give back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

TRTX = str(Path(sys.executable).with_name("trtx"))
MAX_PROMPT_WORDS, MAX_TOKENS = 40, 64
# Part of the clients that leave before their answer ends.
LEAVING = 0.4
SETTLE_S = 30


@dataclass(frozen=True)
class Storm:
    """What came of all clients, by outcome; blocks in use and requests left afterwards; the server's memory in bytes
    when it was ready, after the first wave and after the second; how long the second took."""

    outcomes: Counter[str]
    blocks_left: int
    requests_left: int
    rss_bytes: tuple[int, int, int]
    seconds: float
    output_tokens: int


def run_storm(engine: Path, log: Path, num_clients: int, seed: int) -> Storm:
    """Start a server for an engine folder, send two waves of clients, and stop it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The server inherits it. A connection is a file on either side.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * num_clients)), hard))
    with serving(engine, log) as (url, pid):
        return asyncio.run(_send_waves(url, pid, num_clients, random.Random(seed)))


@contextlib.contextmanager
def serving(engine: Path, log: Path) -> Iterator[tuple[str, int]]:
    """The address and the process id of a server; it must end in order."""
    argv = [TRTX, "serve", str(engine), "--port", "0", "-o", "json"]
    with log.open("w") as stream, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stream, text=True) as process:
        try:
            assert process.stdout is not None
            said = "".join(itertools.takewhile(lambda line: line != "}\n", process.stdout))
            assert said, f"the server did not start: {log.read_text()}"
            yield json.loads(said + "}")["url"], process.pid
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
            assert code == 0, f"the server ended with {code}: {log.read_text()}"
        finally:
            process.kill()


def read_rss(pid: int) -> int:
    """Resident memory of a process in bytes; proc(5) counts kB of 1024 bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


async def _send_waves(url: str, pid: int, num_clients: int, draw: random.Random) -> Storm:
    outcomes: Counter[str] = Counter()
    memory = [read_rss(pid)]
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        for _ in range(2):
            began = time.perf_counter()
            before = (await _read_stats(session))["output_tokens"]
            bodies = [_make_body(draw) for _ in range(num_clients)]
            patience = [draw.randrange(8) if draw.random() < LEAVING else None for _ in bodies]
            outcomes.update(await asyncio.gather(*map(_ask, [session] * num_clients, bodies, patience)))
            stats = await _settle(session)
            seconds = time.perf_counter() - began
            memory.append(read_rss(pid))
    left = stats["running"] + stats["waiting"]
    tokens = stats["output_tokens"] - before
    return Storm(outcomes, stats["kv_blocks_used"], left, (memory[0], memory[1], memory[2]), seconds, tokens)


def _make_body(draw: random.Random) -> dict[str, Any]:
    words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(draw.randint(1, MAX_PROMPT_WORDS))]
    # Some are sampled, some are greedy.
    temperature = draw.choice((0, 0.8))
    sampling = {"temperature": temperature, "max_tokens": draw.randint(1, MAX_TOKENS), "ignore_eos": True}
    return {"prompt": " ".join(words), "stream": True, **sampling}


async def _ask(session: aiohttp.ClientSession, body: dict[str, Any], patience: int | None) -> str:
    """The outcome of one request; with `patience` the client leaves after so many events."""
    try:
        async with session.post("/v1/completions", json=body) as answer:
            if answer.status != 200:
                return f"status {answer.status}"
            count, last = 0, b""
            async for line in answer.content:
                if not line.startswith(b"data: "):
                    continue
                if count == patience:
                    return "left"
                if b'"error"' in line:
                    return "error event"
                count, last = count + 1, line
            return "answered" if last.strip() == b"data: [DONE]" else "cut off"
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__


async def _settle(session: aiohttp.ClientSession) -> dict[str, Any]:
    """Statistics once nothing runs; the last ones after SETTLE_S seconds."""
    for _ in range(SETTLE_S * 10):
        stats = await _read_stats(session)
        if not stats["running"] and not stats["waiting"]:
            break
        await asyncio.sleep(0.1)
    return stats


async def _read_stats(session: aiohttp.ClientSession) -> dict[str, Any]:
    async with session.get("/stats") as answer:
        stats: dict[str, Any] = await answer.json()
        return stats
