"""What the fuzzer found worth keeping is read again at every change; see docs/fuzzing.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from . import fuzz_card
from .mutator import mutate
from .target import FILE, FORGED, GOLDEN, SilentDamage, Target

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
    monkeypatch.setattr(Target, "__call__", lambda self, data: np.ones(much, np.uint8))
    with pytest.raises(fuzz_card.Blowup, match="bytes resident"):
        watched(b"")
    monkeypatch.setattr(Target, "__call__", lambda self, data: None)
    monkeypatch.setattr(fuzz_card, "SECONDS", 0.0)
    with pytest.raises(fuzz_card.Hang):
        watched(b"")
    assert watched.count == 3
