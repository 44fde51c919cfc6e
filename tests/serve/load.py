"""Many clients at once, some of them rude: nothing leaks, and no answer is wrong.

    python -m tests.serve.load --minutes 10 --clients 32

A server of a small model (`raw` cards, two tenants, a store that is always full) in a process of
its own. Each answer is compared with what the model says after the whole text in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from qkvshare.hf.session.session import Session

from ..conftest import greedy_from_text
from .server import CARD, talker, tokens_file

SAID, MAX_BODY = 12, 20_000
TOKENS = {"red": "red-token-0123456789", "blue": "blue-token-0123456789", "metrics": "m" * 20}
DOCUMENTS = [f"Note {n}: the tide is high at {n} and low at {n + 6}. " * 6 for n in range(8)]
QUESTIONS = [f"What is note {n} about?" for n in range(4)]


def wait_for(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address of a server, once it says that it listens."""
    while not (found := re.search(r"running on (http://127.0.0.1:\d+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    return found[1]


@contextmanager
def server(folder: Path, session: Session, limit: str) -> Iterator[tuple[str, int]]:
    """``qkvshare serve`` on a free port; gives address and process id."""
    model = folder / "tiny"
    session.model.save_pretrained(model)
    session.tokenizer.save_pretrained(model)
    tokens = tokens_file(folder, **TOKENS)
    # Without --max-tokens the default would let a rude client's answer hold everybody up.
    command = [
        *(sys.executable, "-m", "qkvshare", "serve", "-m", str(model), "--port", "0"),
        *("--store", str(folder / "cards"), "--tokens", str(tokens), "--codec", "raw"),
        *("--limit", limit, "--max-body", f"{MAX_BODY}", "--max-tokens", "64"),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        yield wait_for(process, folder / "log"), process.pid
    finally:
        process.terminate()
        process.wait(30)


class Load:
    """What the clients do, and what came of it."""

    def __init__(self, address: str, session: Session, seed: int) -> None:
        self.address, self.session, self.random = address, session, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._references: dict[str, str] = {}

    def reference(self, messages: list[dict[str, str]]) -> str:
        """What the model says after all of it, in one go and without a hand-off."""
        ids = self.session.chat.whole(messages)
        if str(messages) not in self._references:
            new = greedy_from_text(self.session.model, ids.tolist(), SAID)
            self._references[str(messages)] = str(self.session.tokenizer.decode(new))
        return self._references[str(messages)]

    async def client(self, number: int, until: float) -> None:
        """One client's life: all acts again and again, mixed anew, and each at least once."""
        acts = [*[self.hand_off] * 6, *[self.leave] * 2, self.too_long, self.no_token, self.cards]
        tenant = ("red", "blue")[number % 2]
        headers = {"Authorization": f"Bearer {TOKENS[tenant]}"}
        async with httpx.AsyncClient(base_url=self.address, headers=headers, timeout=120) as client:
            for turn in itertools.count():
                for act in self.random.sample(acts, len(acts)):
                    if turn and time.monotonic() > until:
                        return
                    await act(client)

    async def ask(
        self, client: httpx.AsyncClient, messages: Any, expected: str, transfer: dict[str, Any]
    ) -> dict[str, Any] | None:
        """One question; None where the server was busy or has dropped the card."""
        body = {
            "model": "tiny",
            "messages": messages,
            "max_tokens": SAID,
            "temperature": 0,
            "kv_transfer_params": transfer,
        }
        answer = await client.post("/v1/chat/completions", json=body)
        self.counts[f"answers {answer.status_code}"] += 1
        if answer.status_code in (429, 404):
            return None
        if answer.status_code != 200:
            self.wrong.append(f"{answer.status_code}: {answer.text[:300]}")
            return None
        found: dict[str, Any] = answer.json()
        said = found["choices"][0]["message"]["content"]
        if said != expected:
            self.wrong.append(f"said {said!r}, expected {expected!r} after {messages}")
        if "card" in transfer and not found["usage"]["prompt_tokens_details"]["cached_tokens"]:
            self.wrong.append("a card was named and nothing was cached")
        return found

    async def hand_off(self, client: httpx.AsyncClient) -> None:
        """Read, keep, and ask from the card, or with the whole conversation."""
        read = [{"role": "user", "content": self.random.choice(DOCUMENTS)}]
        first = self.reference(read)
        kept = await self.ask(client, read, first, {"keep": True, "agent": "reader"})
        if kept is None:
            return
        card = kept["kv_transfer_params"]["card"]
        for question in self.random.sample(QUESTIONS, 2):
            ask = [{"role": "user", "content": question}]
            whole = [*read, {"role": "assistant", "content": first}, *ask]
            named = self.random.random() < 0.7
            transfer = {"card": card} if named else {}
            await self.ask(client, ask if named else whole, self.reference(whole), transfer)

    async def leave(self, client: httpx.AsyncClient) -> None:
        """Disconnect while waiting or being answered."""
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": self.random.choice(DOCUMENTS)}],
            "max_tokens": 64,
            "stream": self.random.random() < 0.5,
            "kv_transfer_params": {"keep": True},
        }
        try:
            wait = httpx.Timeout(self.random.uniform(0.01, 0.5))
            await client.post("/v1/chat/completions", json=body, timeout=wait)
            self.counts["left too late"] += 1
        except httpx.TimeoutException:
            self.counts["left"] += 1

    async def too_long(self, client: httpx.AsyncClient) -> None:
        """Send more than is allowed, in one piece or in many."""

        async def pieces() -> Any:
            for _ in range(30):
                yield b"x" * 1000

        whole = self.random.random() < 0.5
        try:
            answer = await client.post(
                "/v1/chat/completions",
                content=b"x" * 30_000 if whole else pieces(),
                headers={"Content-Type": "application/json"},
            )
        except httpx.HTTPError:  # the server closes while we still send
            self.counts["too long: closed"] += 1
            return
        self.counts[f"too long {answer.status_code}"] += 1
        if answer.status_code != 413:
            self.wrong.append(f"too long a body got {answer.status_code}")

    async def no_token(self, client: httpx.AsyncClient) -> None:
        """Ask with a token that is nobody's."""
        answer = await client.get(
            "/v1/cards", headers={"Authorization": f"Bearer {self.random.random():.16f}"}
        )
        self.counts[f"no token {answer.status_code}"] += 1
        if answer.status_code != 401:
            self.wrong.append(f"a wrong token got {answer.status_code}")

    async def cards(self, client: httpx.AsyncClient) -> None:
        """Get a card, put it back, and remove one."""
        listed = (await client.get("/v1/cards")).json()["data"]
        if not listed:
            return
        card = self.random.choice(listed)["card"]
        got = await client.get(f"/v1/cards/{card}")
        if got.status_code == 200:
            put = await client.post("/v1/cards", content=got.content, headers=CARD)
            self.counts[f"put {put.status_code}"] += 1
            if put.status_code == 201 and put.json()["card"] != card:
                self.wrong.append("a card came back under another digest")
        gone = await client.delete(f"/v1/cards/{card}")
        self.counts[f"delete {gone.status_code}"] += 1


def quantile(metrics: str, stage: str, share: float) -> float:
    """Of a stage's histogram, in ms, linear within a bucket as Prometheus has it."""
    pattern = rf'qkvshare_stage_ms_bucket{{le="([^"]+)",stage="{stage}"}} (\S+)'
    buckets = [(float(le), float(n)) for le, n in re.findall(pattern, metrics)]
    wanted, below, before = share * buckets[-1][1], 0.0, 0.0
    for le, number in buckets:
        if number >= wanted:
            return below + (le - below) * (wanted - before) / max(1.0, number - before)
        below, before = le, number
    return below


async def run(load: Load, clients: int, seconds: float, pid: int) -> list[tuple[float, int]]:
    """All clients at once; gives (seconds, resident bytes) once a second."""
    begun, memory, process = time.monotonic(), [], psutil.Process(pid)
    tasks = [asyncio.create_task(load.client(at, begun + seconds)) for at in range(clients)]
    while not all(task.done() for task in tasks):
        memory.append((time.monotonic() - begun, process.memory_info().rss))
        await asyncio.wait(tasks, timeout=1)
    for task in tasks:
        task.result()
    return memory


def main() -> None:
    """Run, and print what was measured; exit code 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--limit", default="20MB", help="of each tenant's store")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    session = talker()
    with (
        tempfile.TemporaryDirectory() as folder,
        server(Path(folder), session, chosen.limit) as (address, pid),
    ):
        load = Load(address, session, chosen.seed)
        memory = asyncio.run(run(load, chosen.clients, 60 * chosen.minutes, pid))
        bearer = {"Authorization": f"Bearer {TOKENS['metrics']}"}
        metrics = httpx.get(f"{address}/metrics", headers=bearer).text
    end = memory[-1][0]
    parts = [(0.2 * end, 0.4 * end), (0.8 * end, end)]
    early, late = (
        statistics.median(size for at, size in memory if start <= at <= stop)
        for start, stop in parts
    )
    for name, count in sorted(load.counts.items()):
        print(f"{name}: {count:,}")
    print(f"memory {early / 2**20:.1f} → {late / 2**20:.1f} MiB ({late / early - 1:+.1%})")
    for stage in ("queue", "overhead", "first"):
        shares = ", ".join(f"p{q} {quantile(metrics, stage, q / 100):.1f}" for q in (50, 90, 99))
        print(f"{stage}, ms: {shares}")
    print(f"wrong: {len(load.wrong)}")
    for line in load.wrong[:5]:
        print(line)
    sys.exit(bool(load.wrong))


if __name__ == "__main__":
    main()
