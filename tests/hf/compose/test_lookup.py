"""From a prompt to parts that cards have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qkvshare import Raw, Span, Store, capture, compose
from qkvshare.hf.compose.lookup import find_parts
from qkvshare.hf.compose.repairs import All

from ...conftest import greedy, greedy_from_text, some_ids

SYSTEM, OTHER = some_ids(20, seed=1), some_ids(23, seed=2)
NOTES, MORE, ASKED = some_ids(110, seed=3), some_ids(110, seed=4), some_ids(7, seed=5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def spans(parts: list[Any]) -> list[Any]:
    return [(p.start, p.stop) if isinstance(p, Span) else len(p) for p in parts]


def test_notes_are_found_behind_another_prompt(store: Store, llama: Any) -> None:
    store.put(capture(llama, None, [*SYSTEM, *NOTES], codec=Raw()))
    ids = [*OTHER, *NOTES, *ASKED]
    parts = find_parts(store, llama, ids)
    assert spans(parts) == [23, (20, 130), 7]
    composed = compose(llama, parts, repair=All())
    assert (composed.read, composed.repaired, composed.left) == (23, 110, 7)
    assert greedy(llama, **composed.inputs) == greedy_from_text(llama, ids)


def test_prefix_first_then_pieces(store: Store, llama: Any) -> None:
    store.put(capture(llama, None, [*SYSTEM, *NOTES], codec=Raw()))
    store.put(capture(llama, None, [*OTHER, *MORE], codec=Raw()))
    ids = [*SYSTEM, *NOTES, *MORE, *ASKED]
    parts = find_parts(store, llama, ids)
    assert spans(parts) == [(0, 130), (23, 133), 7]
    composed = compose(llama, parts)
    assert (composed.exact, composed.repaired, composed.taken) == (130, 4, 106)


def test_nothing_of_it(store: Store, llama: Any) -> None:
    (part,) = find_parts(store, llama, some_ids(60, seed=9))
    assert list(part) == some_ids(60, seed=9)
