"""Kill writers of one store at random moments, again and again, and then account for every card.

    python -m tests.store.soak --kills 2000

Each worker notes a card as soon as `put` has returned, and before it asks for a removal. What was
noted and not asked to be removed must be there at the end, whole; what any worker sees meanwhile
must be whole too.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from qkvshare.card import CacheCard
from qkvshare.card.errors import CardNotFoundError, StoreError
from qkvshare.store import Audit, Store
from tests.cards import make_card

WORKERS = 4


@dataclass
class Report:
    """What a soak run found."""

    kills: int
    acknowledged: int
    removed: int
    missing: list[str]
    audit: Audit
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.audit.ok and not self.missing and not self.failures

    def __str__(self) -> str:
        return (
            f"{self.kills} kills of {WORKERS} processes: {self.acknowledged} cards acknowledged, "
            f"{self.removed} of them removed on request, {len(self.missing)} missing; audit: "
            f"{self.audit.cards} cards in {self.audit.segments} segments, "
            f"{len(self.audit.damaged)} damaged, {len(self.audit.lost)} without files; "
            f"{len(self.failures)} failures"
        )


def work(root: Path, notes: Path, bases: list[CacheCard], seed: int) -> None:
    """Put, read, remove and collect for ever."""
    chance = random.Random(seed)
    store = Store(root)
    log = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    mine: list[str] = []
    for number in range(10**9):
        what = chance.random()
        if what < 0.6 or not mine:
            card = chance.choice(bases).fork(f"{seed}-{number}")
            mine.append(store.put(card))
            os.write(log, f"put {mine[-1]}\n".encode())
        elif what < 0.75:
            store.gc(abandoned=-1)  # takes even what others are writing right now
        elif what < 0.9:
            entry = chance.choice(store.ls())
            try:
                store.get(entry.digest).verify()
            except CardNotFoundError as error:
                if "not in the store" not in str(error):
                    os.write(log, f"failed half visible: {error}\n".encode())
        else:
            digest = mine.pop(chance.randrange(len(mine)))
            os.write(log, f"removing {digest}\n".encode())
            store.remove(digest)


def start(root: Path, notes: Path, bases: list[CacheCard], seed: int) -> int:
    """A worker in a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        work(root, notes, bases, seed)
    except BaseException as error:
        with notes.open("a") as file:
            file.write(f"failed {type(error).__name__}: {error}\n".replace("\n", " ") + "\n")
    os._exit(1)


def soak(folder: Path, kills: int, seed: int = 0) -> Report:
    """Run `WORKERS` workers on one store, kill and replace one at a time, ``kills`` times."""
    chance = random.Random(seed)
    bases = [make_card(seed=n, runs=(40, 30)[: 1 + n % 2]) for n in range(6)]
    root = folder / "store"
    Store(root).close()
    notes = [folder / f"notes-{n}" for n in range(WORKERS)]
    workers = [start(root, notes[n], bases, n) for n in range(WORKERS)]
    for kill in range(kills):
        time.sleep(chance.random() * 0.06)
        victim = chance.randrange(WORKERS)
        os.kill(workers[victim], signal.SIGKILL)
        os.waitpid(workers[victim], 0)
        workers[victim] = start(root, notes[victim], bases, WORKERS + kill)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
    return account(root, notes, kills)


def account(root: Path, notes: list[Path], kills: int) -> Report:
    """Compare what the workers noted with what a new process finds."""
    lines = [line.split(" ", 1) for path in notes for line in path.read_text().splitlines()]
    told: dict[str, set[str]] = {"put": set(), "removing": set(), "failed": set()}
    for verb, what in lines:
        told[verb].add(what)
    try:
        store = Store(root)
    except StoreError as error:
        return Report(kills, len(told["put"]), 0, [], Audit(0, 0, 0, 0), [str(error)])
    # A removal that was killed half-way leaves a row; collecting clears it away.
    store.gc(abandoned=-1)
    there = Counter(entry.digest for entry in store.ls())
    missing = sorted(told["put"] - told["removing"] - there.keys())
    audit = store.audit()
    return Report(
        kills, len(told["put"]), len(told["removing"]), missing, audit, sorted(told["failed"])
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        report = soak(Path(name), options.kills, options.seed)
        print(report, f"({time.monotonic() - began:.0f} s)")
        for line in [*report.missing, *report.failures][:20]:
            print(" ", line)
        raise SystemExit(0 if report.ok else 1)
