"""Profiles that somebody made to do harm: each is refused before a kernel reads its tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qkvshare.card.errors import ProfileError
from qkvshare.codecs import Shape, Transform, empty
from qkvshare.profile import Profile

from ..profiles import made_up_layers, made_up_profile

GOOD = made_up_profile(3)
SHAPES = [Shape(2, 6, 8, 8)] * 3
BLOBS = list(Transform.of(GOOD).at(0).encode(made_up_layers(3, 6)))
Edit = Callable[[Any], Any]


def slots(name: str, row: int, values: dict[int, int]) -> Edit:
    def edit(arrays: Any) -> None:
        changed = arrays[name].copy()
        for at, value in values.items():
            changed[row, at] = value
        arrays[name] = changed

    return edit


def put(name: str, change: Edit) -> Edit:
    def edit(arrays: Any) -> None:
        arrays[f"transform.{name}"] = change(arrays[f"transform.{name}"].copy())

    return edit


def first(value: Any) -> Edit:
    """With another first number."""

    def change(array: Any) -> Any:
        array.flat[0] = value
        return array

    return change


EDITS: dict[str, Edit] = {
    # The first two ended the process.
    "scales of one column": put("0.keys.scales", lambda a: a[:, :1]),
    "scales of no column": put("1.values.scales", lambda a: a[:, :0]),
    "scales of one step": put("0.keys.scales", lambda a: a[:1]),
    "scales of 32 bits": put("0.keys.scales", lambda a: a.astype(np.int32)),
    "tables of one row": put("freq", lambda a: a[:1]),
    "tables of no row": put("freq", lambda a: a[:0]),
    "points of one row": put("points", lambda a: a[:1]),
    "points of one symbol": put("points", lambda a: a[:, :1]),
    "points that are no numbers": put("points", first(np.nan)),
    "a frequency of 2^30": put("freq", lambda a: first(2**30)(a.astype(np.int32))),
    "a frequency below 0": put("freq", lambda a: a - (np.arange(64) == 3) + (np.arange(64) == 31)),
    "frequencies that add up to less": slots("transform.freq", 7, {31: 1}),
    "no room to escape": put("freq", lambda a: np.eye(64, dtype=np.int16)[31][None] * 4096 + 0 * a),
    "refined tables of one row": put("refined.freq", lambda a: a[:1]),
    "refined points of one row": put("refined.points", lambda a: a[:56]),
    "refined frequencies of 0": put("refined.freq", lambda a: a * 0),
    "expected magnitudes below 0": put("expected", lambda a: a * 0 - 256),
    "expected magnitudes of 2^31 - 1": put("expected", lambda a: a * 0 + (2**31 - 1)),
    "fewer expected magnitudes": put("expected", lambda a: a[:3]),
    "two references": put("reference", lambda a: np.append(a, a)),
    "a reference far off": put("reference", lambda a: a * 0 + 2**30),
    "a reference that is no whole number": put("reference", lambda a: a.astype(np.float32)),
    "a source that comes later": put("sources", lambda a: a * 0 + 2),
    "a source that is the layer": put("sources", lambda a: a * 0),
    "a source before all": put("sources", lambda a: a * 0 - 2),
    "sources of one column": put("sources", lambda a: a[:, :1]),
    "no layers": put("sources", lambda a: a[:0]),
    "more layers than there are arrays": put("sources", lambda a: np.concatenate([a, a])),
    "fewer layers than there are arrays": put("sources", lambda a: a[:2]),
    "a predictor of fewer features": put("1.keys.predictor", lambda a: a[:-1]),
    "a predictor of fewer columns": put("2.values.predictor", lambda a: a[:, :-1]),
    "a predictor of whole numbers": put("1.keys.predictor", lambda a: a.astype(np.int16)),
    "a predictor with infinity": put("1.keys.predictor", first(np.inf)),
    "a basis of one row": put("0.keys.back", lambda a: a[:1]),
    "a basis that is no number": put("0.values.back", first(np.nan)),
    "a mean of no columns": put("0.keys.mean", lambda a: a[:0]),
    "a mean in a matrix": put("0.keys.mean", lambda a: a[None]),
    "a mean that is infinite": put("2.values.mean", first(-np.inf)),
    "an array too many": lambda arrays: arrays.update({"transform.x": arrays["transform.freq"]}),
    "an array too few": lambda arrays: arrays.pop("transform.2.values.back"),
}


@pytest.mark.parametrize("name", EDITS)
def test_basis_that_cannot_be(tmp_path: Path, name: str) -> None:
    arrays = dict(GOOD.arrays)
    EDITS[name](arrays)
    Profile(GOOD.weights, arrays).save(tmp_path / "profile")
    loaded = Profile.load(tmp_path / "profile")
    with pytest.raises(ProfileError, match="the profile's array 'transform"):
        list(Transform.of(loaded).at(0).decode(BLOBS, empty(SHAPES, torch.float32)))


def test_the_good_one_is_taken(tmp_path: Path) -> None:
    GOOD.save(tmp_path / "profile")
    loaded = Profile.load(tmp_path / "profile")
    assert len(list(Transform.of(loaded).at(0).decode(BLOBS, empty(SHAPES, torch.float32)))) == 3


def test_file_that_is_cut_short_or_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "profile"
    GOOD.save(path)
    content = path.read_bytes()
    for length in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ProfileError, match="cannot be read as a profile"):
            Profile.load(path)
    Profile("no digest", GOOD.arrays).save(path)
    with pytest.raises(ProfileError, match="digest of a model's weights"):
        Profile.load(path)
