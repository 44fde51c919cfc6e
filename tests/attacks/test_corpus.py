"""What the fuzzer found worth keeping is read again at every change; see docs/fuzzing.md."""

from __future__ import annotations

import mmap
import random
from pathlib import Path

import numpy as np
import pytest

from qkvshare import CacheCard

from . import fuzz_card
from .mutator import mutate
from .target import (
    FILE,
    FORGED,
    GOLDEN,
    KEY,
    PROFILE,
    RESEALED,
    SEALED,
    SilentDamage,
    Target,
)

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target(tmp_path_factory.mktemp("fuzz") / "card")


def test_corpus(target: Target) -> None:
    inputs = sorted(CORPUS.iterdir())
    assert len(inputs) >= 50
    for file in inputs:
        try:
            target(file.read_bytes())
        except Exception as error:
            raise AssertionError(f"{file.name}: see docs/fuzzing.md to run it alone") from error


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.card")), ids=lambda file: file.stem)
def test_changed_cards_are_read_as_deep_as_the_fuzzer_means_to(target: Target, file: Path) -> None:
    """A forger's changes get past the digests; without his digests nothing gets past them."""
    forged = 0
    for seed in range(40):
        data = mutate(bytes([FORGED]) + file.read_bytes(), 8192, seed, lambda data, _: data)
        target(data)
        forged += target.bytes_out > 0
        target(bytes([FILE]) + data[1:])
    assert forged >= 5


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.card")), ids=lambda file: file.stem)
def test_sealed_and_thin_cards_are_read_as_deep(target: Target, file: Path, tmp_path: Path) -> None:
    card = CacheCard.load(file)
    target(bytes([SEALED]) + card.save(tmp_path / "card", key=KEY).read_bytes())
    whole = target.bytes_out
    assert whole > 0
    for kind in (FILE, FORGED, RESEALED):
        target(bytes([kind]) + card.without(card).to_bytes())
        assert target.bytes_out == whole


def test_profiles_are_changed_and_refused_or_used(target: Target) -> None:
    draw, used = random.Random(0), 0
    for _ in range(60):
        target(bytes([PROFILE, *draw.randbytes(24)]))
        used += target.used
    assert 0 < used < 60


def test_silent_damage_is_noticed(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes([FILE]) + (GOLDEN / "raw.card").read_bytes()
    target(data)
    monkeypatch.setattr(target, "genuine", {})
    with pytest.raises(SilentDamage):
        target(data)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is watched on Linux")
def test_the_watch_sees_memory_and_time(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = fuzz_card.Watched(target)
    watched(b"")
    much = fuzz_card.RESIDENT + (8 << 20)

    def greedy(self: Target, data: bytes) -> None:
        # Fresh pages: memory that an allocator uses again is resident already.
        np.frombuffer(mmap.mmap(-1, much), np.uint8)[:] = 1

    monkeypatch.setattr(Target, "__call__", greedy)
    with pytest.raises(fuzz_card.Blowup, match="bytes resident"):
        watched(b"")
    monkeypatch.setattr(Target, "__call__", lambda self, data: None)
    monkeypatch.setattr(fuzz_card, "SECONDS", 0.0)
    with pytest.raises(fuzz_card.Hang):
        watched(b"")
    assert watched.count == 3
