"""Saving, loading, sizes, atomicity."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from benchmarks.codecs import Uniform
from qkvshare import CacheCard, Raw, capture
from qkvshare.card import Run, container
from qkvshare.card.container import blob_name
from qkvshare.card.errors import CardDigestError, CardNotFoundError
from qkvshare.codecs import LayerKV, decode_runs, shapes_of
from qkvshare.codecs.layers import empty

from ..cards import make_card
from ..conftest import some_ids


@settings(max_examples=40)
@given(
    runs=st.lists(st.integers(1, 30), min_size=1, max_size=5).map(tuple),
    codec=st.sampled_from([Raw(), Uniform(8), Uniform(3)]),
    seed=st.integers(0, 9),
)
def test_round_trip_and_size(
    tmp_path_factory: pytest.TempPathFactory, runs: tuple[int, ...], codec: Any, seed: int
) -> None:
    path = tmp_path_factory.mktemp("cards") / "card"
    card = make_card(codec, runs, seed)
    loaded = CacheCard.load(card.save(path))
    loaded.verify()
    assert loaded.manifest == card.manifest
    assert loaded.digest == card.digest
    assert loaded.tokens == sum(runs)
    assert np.array_equal(loaded.token_ids, card.token_ids)
    # the size is known before anything is written, to the byte
    assert card.nbytes == loaded.nbytes == path.stat().st_size
    assert card.blob_bytes == loaded.blob_bytes
    assert loaded.bits_per_value == 8 * path.stat().st_size / (sum(runs) * 2 * 2 * 2 * 8)
    for segment in range(len(runs)):
        pairs = zip(decode_runs(card)[segment], decode_runs(loaded)[segment], strict=True)
        for one, two in pairs:
            assert torch.equal(one.keys, two.keys)
            assert torch.equal(one.values, two.values)


def test_layers_for_elsewhere_are_verified_before_anybody_asks_where(tmp_path: Path) -> None:
    """All at once; what is damaged comes out where it would have."""
    card = CacheCard.load(make_card(Uniform(8), (20,)).save(tmp_path / "card"))
    here, there = (list(decode_runs(card, elsewhere=at)[0]) for at in (False, True))
    for one, two in zip(here, there, strict=True):
        assert torch.equal(one.keys, two.keys)
        assert torch.equal(one.values, two.values)

    read, tensors = Event(), dict(card.verified())
    last = blob_name(len(card.manifest.layers) - 1, 0)
    tensors[last] = tensors[last] ^ 1

    class Seen(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            if name == last:
                read.set()
            return super().__getitem__(name)

    def into(run: Run) -> Iterator[LayerKV]:
        assert read.wait(20)
        return iter(empty(shapes_of(card, run), torch.float32))

    layers = decode_runs(CacheCard(card.manifest, Seen(tensors)), into, elsewhere=True)[0]
    for _ in card.manifest.layers[1:]:
        next(layers)
    with pytest.raises(CardDigestError, match="damaged"):
        next(layers)


def test_any_safetensors_reader_can_open_it(tmp_path: Path) -> None:
    tensors = load_file(make_card().save(tmp_path / "card"))
    assert list(tensors) == sorted(tensors)
    assert tensors["ids.0000"].tolist() == [0, 1, 2, 3, 4, 5]


def test_layers_lie_in_order(tmp_path: Path) -> None:
    from ..cards import take_apart

    header, _ = take_apart(make_card().save(tmp_path / "card"))
    starts = {name: at["data_offsets"][0] for name, at in header.items() if name[0] != "_"}
    assert sorted(starts, key=starts.__getitem__) == [
        "ids.0000",
        "ids.0001",
        "kv.0000.0000",
        "kv.0000.0001",
        "kv.0001.0000",
        "kv.0001.0001",
    ]


def test_opening_reads_no_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_card().save(tmp_path / "card")
    read = []
    original = container.FileTensors.__getitem__
    monkeypatch.setattr(
        container.FileTensors,
        "__getitem__",
        lambda self, name: read.append(name) or original(self, name),
    )
    card = CacheCard.load(path)
    _ = card.nbytes, card.bits_per_value, card.blob_bytes, card.digest
    assert read == ["ids.0000", "ids.0001"]
    card.blob(1, 0)
    assert read[2:] == ["kv.0001.0000"]


def test_a_blob_is_a_private_copy(tmp_path: Path) -> None:
    path = make_card().save(tmp_path / "card")
    blob = CacheCard.load(path).blob(0, 0)
    before = blob.copy()
    with path.open("r+b") as file:  # changed after it was checked
        file.seek(-path.stat().st_size // 2, os.SEEK_END)
        file.write(b"\xff" * 64)
    assert np.array_equal(blob, before)


@pytest.mark.parametrize("missing", ["nothing/here", "."])
def test_no_such_file(tmp_path: Path, missing: str) -> None:
    with pytest.raises(CardNotFoundError, match="no card can be read"):
        CacheCard.load(tmp_path / missing)


def test_a_budget_in_whole_bits(tmp_path: Path, llama: Any) -> None:
    """An int where the header has a float: what is written can be read."""
    card = capture(llama, None, some_ids(100), bits=15)
    assert CacheCard.load(card.save(tmp_path / "card")).digest == card.digest
