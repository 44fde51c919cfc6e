"""Profiles as the fuzzer makes them: a good one, and what its input says is changed in it.

A whole profile is longer than an input may be, and most changed bytes of one change nothing but a
number in a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkvshare.profile import Profile

Byte = Callable[[], int]
Arrays = dict[str, Any]

NUMBERS = (0, 1, -1, 2, 31, 56, 64, 4096, 4095, -4096, 32767, -32768, 2**30, 2**31 - 1, -(2**31))
FLOATS = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, 65504.0, 3e38)
KINDS = ("<i2", "<i4", "<f2", "<f4", "u1")


def changed(base: Profile, byte: Byte) -> Profile:
    """``base`` with one to four changes that ``byte`` says."""
    arrays: Arrays = dict(base.arrays)
    for _ in range(1 + byte() % 4):
        if not arrays:
            break
        names = sorted(arrays)
        name = names[byte() % len(names)]
        CHANGES[byte() % len(CHANGES)](arrays, name, byte)
    return Profile(base.weights, arrays)


def _cut(arrays: Arrays, name: str, byte: Byte) -> None:
    array = arrays[name]
    if array.ndim:
        axis, keep = byte() % array.ndim, byte() % 8
        rows = [slice(None)] * array.ndim
        rows[axis] = slice(keep) if byte() % 2 else slice(keep, None)
        arrays[name] = np.ascontiguousarray(array[tuple(rows)])


def _shape(arrays: Arrays, name: str, byte: Byte) -> None:
    array = arrays[name]
    turned = (array.T, array.ravel(), array[None], array[..., None], array[..., :1].squeeze())
    arrays[name] = np.ascontiguousarray(turned[byte() % len(turned)])


def _longer(arrays: Arrays, name: str, byte: Byte) -> None:
    array = arrays[name]
    if array.ndim:
        arrays[name] = np.concatenate([array, array], byte() % array.ndim)


def _number(arrays: Arrays, name: str, byte: Byte) -> None:
    array = arrays[name].copy()
    if array.size:
        of = FLOATS if array.dtype.kind == "f" and byte() % 2 else NUMBERS
        value = np.array(of[byte() % len(of)], np.float64)
        with np.errstate(all="ignore"):
            array.flat[(byte() | byte() << 8) % array.size] = value.astype(array.dtype)
    arrays[name] = array


def _moved(arrays: Arrays, name: str, byte: Byte) -> None:
    """Two numbers change against each other, so that a sum stays."""
    array = arrays[name].copy()
    if array.size > 1:
        one, other = (byte() | byte() << 8) % array.size, (byte() | byte() << 8) % array.size
        with np.errstate(all="ignore"):
            step = np.array(byte() - 128).astype(array.dtype)
            array.flat[one] += step
            array.flat[other] -= step
    arrays[name] = array


def _filled(arrays: Arrays, name: str, byte: Byte) -> None:
    with np.errstate(all="ignore"):
        value = np.array(NUMBERS[byte() % len(NUMBERS)]).astype(arrays[name].dtype)
    arrays[name] = np.full_like(arrays[name], value)


def _kind(arrays: Arrays, name: str, byte: Byte) -> None:
    with np.errstate(all="ignore"):
        arrays[name] = arrays[name].astype(KINDS[byte() % len(KINDS)])


def _gone(arrays: Arrays, name: str, byte: Byte) -> None:
    del arrays[name]


def _other(arrays: Arrays, name: str, byte: Byte) -> None:
    names = sorted(arrays)
    arrays[name] = arrays[names[byte() % len(names)]]


def _named(arrays: Arrays, name: str, byte: Byte) -> None:
    names = ("transform.9.keys.mean", "transform.x", "transform.", "x", name + ".more")
    arrays[names[byte() % len(names)]] = arrays[name]


CHANGES = (_cut, _shape, _longer, _number, _number, _moved, _moved, _filled, _kind, _gone, _other,
           _named)  # fmt: skip
