"""Decode on a second thread what the first one is still reading, checking and opening.

Two threads that both run Python wait for each other at every call, for milliseconds. So the second
one never does: the first tells it of a part in memory that both share, and takes parts itself when
it has opened the last. See ``csrc/decode.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from .decode import FORMATS, add, decode_parts, line_of
from .native import fits
from .parts import Part


class BackgroundDecoder:
    """Used in a ``with`` block, at whose end all parts are decoded; after an error no more are.

    Parts that the second thread cannot take, of other number formats or of another ``dim`` than the
    first one, are decoded at once.
    """

    def __init__(self, first: Tensor, most: int, beforehand: int) -> None:
        """For ``most`` parts, of which ``first`` has the usual numbers. As many of theirs as
        ``beforehand`` may wait to be decoded; with more the caller decodes."""
        alone = torch.get_num_threads() == 1
        self._beforehand = 0 if alone else beforehand
        self._kind = first.shape[2], first.dtype
        self._line: Any = None
        if first.dtype in FORMATS and fits(first.shape[2]):
            self._line = line_of(*self._kind, most)
            if not alone:
                self._line.start()

    def add(self, parts: Sequence[Part]) -> None:
        """Have ``parts`` decoded, or some of those before. Raises `ValueError`."""
        for part in parts:
            if self._line is None or self._kind != (part.numbers.shape[2], part.numbers.dtype):
                decode_parts([part])
            else:
                add(self._line, part)
        if self._line is not None:
            self._line.decode(self._beforehand)

    def __enter__(self) -> Self:
        """The second thread is on its way."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """What the second thread is at is waited for: it writes to what the caller holds."""
        if self._line is not None:
            if kind is None:
                self._line.decode()
            self._line.close()
