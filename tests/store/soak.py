"""Kill writers of two stores at random moments, again and again, and then account for every card.

    python -m tests.store.soak --kills 2000

Half of the workers use a plain store, half a sealed one. Cards come whole, thin, and as uploads.
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
from dataclasses import dataclass, field
from pathlib import Path

from qkvshare.card import CacheCard, Key
from qkvshare.card.errors import CardNotFoundError, CardThinError, StoreError
from qkvshare.store import Audit, Store
from tests.cards import make_card

WORKERS = 4  # even ones use the plain store
KEYS = (None, Key(b"k" * 32))


@dataclass
class Report:
    """What a soak run found."""

    kills: int
    acknowledged: int
    removed: int
    missing: list[str]
    audit: Audit
    failures: list[str] = field(default_factory=list)
    thin: int = 0
    uploads: int = 0

    def __add__(self, other: Report) -> Report:
        """Both stores."""
        mine, theirs = vars(self), vars(other)
        both = {name: mine[name] + theirs[name] for name in mine.keys() - {"kills", "audit"}}
        audits = vars(self.audit), vars(other.audit)
        numbers = ("cards", "segments", "bytes", "orphans")
        audit = Audit(
            **{name: sum(each[name] for each in audits) for name in numbers},
            **{name: {**audits[0][name], **audits[1][name]} for name in ("damaged", "lost")},
        )
        return Report(kills=self.kills, audit=audit, **both)

    @property
    def ok(self) -> bool:
        return self.audit.ok and not self.missing and not self.failures

    def __str__(self) -> str:
        return (
            f"{self.kills} kills of {WORKERS} processes: {self.acknowledged} cards acknowledged "
            f"({self.thin} thin, {self.uploads} uploads; half of the processes sealed), "
            f"{self.removed} removed on request, {len(self.missing)} missing; audit: "
            f"{self.audit.cards} cards in {self.audit.segments} segments, "
            f"{len(self.audit.damaged)} damaged, {len(self.audit.lost)} without files; "
            f"{len(self.failures)} failures"
        )


def work(root: Path, notes: Path, bases: list[CacheCard], seed: int, key: Key | None) -> None:
    """Put, read, remove and collect for ever."""
    chance = random.Random(seed)
    store = Store(root, key=key)
    log = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    bases = [base.salted(store.salt) for base in bases]
    parents = [base.head(base.manifest.segments[0].end) for base in bases]
    mine: list[str] = []
    for number in range(10**9):
        what = chance.random()
        if what < 0.6 or not mine:
            at = chance.randrange(len(bases))
            card, kind = bases[at].fork(f"{seed}-{number}"), "put"
            if what < 0.15:
                card, kind = card.without(parents[at]), "thin"
            elif what < 0.3:
                card, kind = arrived(store, card), "upload"
            try:
                mine.append(store.put(card))
            except CardThinError:  # nobody has put a card with that segment, or gc took it
                continue
            os.write(log, f"{kind} {mine[-1]}\n".encode())
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


def arrived(store: Store, card: CacheCard) -> CacheCard:
    """The same card, as its file comes to a server."""
    with store.receive() as upload:
        upload.write(card.to_bytes())
        got = upload.card()
        return CacheCard(got.manifest, got.verify())


def start(root: Path, notes: Path, bases: list[CacheCard], seed: int, key: Key | None) -> int:
    """A worker in a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        work(root, notes, bases, seed, key)
    except BaseException as error:
        with notes.open("a") as file:
            file.write(f"failed {type(error).__name__}: {error}\n".replace("\n", " ") + "\n")
    os._exit(1)


def soak(folder: Path, kills: int, seed: int = 0) -> Report:
    """Run `WORKERS` workers on both stores, kill and replace one at a time, ``kills`` times."""
    chance = random.Random(seed)
    bases = [make_card(seed=n, runs=(40, 30)[: 1 + n % 2]) for n in range(6)]
    roots = [folder / "plain", folder / "sealed"]
    for root, key in zip(roots, KEYS, strict=True):
        Store(root, key=key).close()
    notes = [folder / f"notes-{n}" for n in range(WORKERS)]

    def begin(worker: int, seed: int) -> int:
        return start(roots[worker % 2], notes[worker], bases, seed, KEYS[worker % 2])

    workers = [begin(n, n) for n in range(WORKERS)]
    for kill in range(kills):
        time.sleep(chance.random() * 0.06)
        victim = chance.randrange(WORKERS)
        os.kill(workers[victim], signal.SIGKILL)
        os.waitpid(workers[victim], 0)
        workers[victim] = begin(victim, WORKERS + kill)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
    plain, sealed = (account(roots[n], notes[n::2], kills, KEYS[n]) for n in range(2))
    return plain + sealed


def account(root: Path, notes: list[Path], kills: int, key: Key | None) -> Report:
    """Compare what the workers noted with what a new process finds."""
    lines = [line.split(" ", 1) for path in notes for line in path.read_text().splitlines()]
    told: dict[str, set[str]] = {
        verb: {what for said, what in lines if said == verb}
        for verb in ("put", "thin", "upload", "removing", "failed")
    }
    put = told["put"] | told["thin"] | told["upload"]
    try:
        store = Store(root, key=key)
    except StoreError as error:
        return Report(kills, len(put), 0, [], Audit(0, 0, 0, 0), [str(error)])
    # A removal that was killed half-way leaves a row; collecting clears it away.
    store.gc(abandoned=-1)
    there = {entry.digest for entry in store.ls()}
    missing = sorted(put - told["removing"] - there)
    failures = told["failed"] | {f"left behind: {path}" for path in left_behind(store)}
    return Report(
        kills,
        len(put),
        len(told["removing"]),
        missing,
        store.audit(),
        sorted(failures),
        len(told["thin"]),
        len(told["upload"]),
    )


def left_behind(store: Store) -> list[str]:
    """Files that nobody takes away; what a writer was killed at waits an hour for gc."""
    kinds = (".card", ".segment", ".lock", ".sqlite", ".sqlite-wal", ".sqlite-shm")
    waiting = set(store.folder.unfinished())
    there = (path for path in store.root.rglob("*") if path.is_file())
    return [str(path) for path in there if not path.name.endswith(kinds) and path not in waiting]


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
