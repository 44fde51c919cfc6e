"""What the arrays of a profile must be before `transform` uses them.

A profile comes from somebody else, as a card does: kernels read its tables by address, so every
shape, sum and range is checked first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..card.errors import ProfileError
from ..kernels.rans import ESCAPE, LARGEST, SYMBOLS, TOTAL
from .entropy import CLASSES, EXPECTED
from .refining import REFINED

KINDS = ("keys", "values")
SCALES = 5  # steps, an octave apart
FARTHEST = 64 * 40  # exponents of steps, in 1/64 octave
_MOST_LAYERS, _MOST_COLUMNS = 4096, 1 << 20

Arrays = dict[str, npt.NDArray[Any]]


def check_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise `ProfileError` unless ``arrays`` are those of docs/codec-transform.md."""
    prefix = "transform."
    left = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    sources = _array(left, "sources", "i", (None, 2))
    if not 1 <= len(sources) <= _MOST_LAYERS:
        raise _bad("sources", f"{len(sources)} layers, expected 1 to {_MOST_LAYERS}")
    later = np.arange(len(sources))[:, None]
    if (sources < -1).any() or (sources >= later).any():
        raise _bad("sources", "a layer that is not before the one it predicts")
    reference = int(_array(left, "reference", "i", (1,))[0])
    if abs(reference) > FARTHEST:
        raise _bad("reference", f"{reference}, expected -{FARTHEST} to {FARTHEST}")
    _check_tables(left, "", CLASSES)
    _check_tables(left, "refined.", REFINED)
    expected = _array(left, "expected", "i", (CLASSES,))
    if expected.min() < 0 or expected.max() > EXPECTED * LARGEST:
        raise _bad("expected", f"a magnitude outside 0 to {EXPECTED * LARGEST}")
    wide: list[tuple[int, int]] = []
    for layer, own in enumerate(sources):
        columns = [_columns(left, layer, kind) for kind in KINDS]
        features = sum(sum(wide[source]) for source in own if source >= 0)
        _check_part(left, f"{layer}.keys", columns[0], features)
        _check_part(left, f"{layer}.values", columns[1], columns[0] + features)
        wide.append((columns[0], columns[1]))
    if left:
        raise _bad(next(iter(left))[:80], "no place in a basis")


def _check_tables(left: Arrays, name: str, classes: int) -> None:
    freq = _array(left, f"{name}freq", "i", (classes, SYMBOLS)).astype(np.int64)
    if freq.min() < 0 or (freq.sum(1) != TOTAL).any() or freq[:, ESCAPE].min() < 1:
        raise _bad(
            f"{name}freq",
            f"frequencies that are below 0, do not add up to {TOTAL}, or leave no room to escape",
        )
    _array(left, f"{name}points", "f", (classes, SYMBOLS))


def _columns(left: Arrays, layer: int, kind: str) -> int:
    columns = len(_array(left, f"{layer}.{kind}.mean", "f", (None,)))
    if not 1 <= columns <= _MOST_COLUMNS:
        raise _bad(f"{layer}.{kind}.mean", f"{columns} columns, expected 1 to {_MOST_COLUMNS}")
    return columns


def _check_part(left: Arrays, name: str, columns: int, features: int) -> None:
    _array(left, f"{name}.predictor", "f", (features, columns))
    _array(left, f"{name}.back", "f", (columns, columns))
    if _array(left, f"{name}.scales", "i", (SCALES, columns)).itemsize > 2:
        raise _bad(f"{name}.scales", "numbers of another type, expected int16")


def _array(left: Arrays, name: str, kind: str, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    """Take one out of them: ``kind`` ``"i"`` or ``"f"``; None where any length will do."""
    array = left.pop(name, None)
    if array is None:
        raise _bad(name, "nothing: it is missing")
    fits = len(shape) == array.ndim and all(
        want in (None, has) for want, has in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype.kind != kind or array.itemsize > 4:
        wanted = "whole numbers" if kind == "i" else "floats"
        raise _bad(name, f"{array.dtype} {list(array.shape)}, expected {wanted} {list(shape)}")
    if kind == "f" and not np.isfinite(array).all():
        raise _bad(name, "numbers that are not finite")
    return array


def _bad(name: str, found: str) -> ProfileError:
    return ProfileError(
        f"the profile's array 'transform.{name}' has {found}. The profile is damaged or was made "
        "by hand; make profiles with qkvshare calibrate."
    )
