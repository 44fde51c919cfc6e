"""Decode on a second thread what the first one is still reading, checking and opening.

Two threads that both run Python wait for each other at every call, for milliseconds. So the second
one never does: the first tells it of a part in memory that both share, and takes parts itself when
it has opened the last. See ``csrc/decode.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch

from .decode import add, decode_parts, takes
from .native import native
from .parts import Part


class BackgroundDecoder:
    """Used in a ``with`` block, at whose end all parts are decoded; after an error no more are.

    Parts that the second thread does not take are decoded at once.
    """

    def __init__(self, most: int, beforehand: int) -> None:
        """For ``most`` parts. As many of their numbers as ``beforehand`` may wait to be decoded;
        with more the caller decodes."""
        self._beforehand, self._line = beforehand, None if native is None else native.Line(most)
        if torch.get_num_threads() == 1:
            self._beforehand = 0
        elif self._line is not None:
            self._line.start()

    def add(self, parts: Sequence[Part]) -> None:
        """Have ``parts`` decoded, or some of those before. Raises `ValueError`."""
        for part in parts:
            if self._line is not None and takes(part):
                add(self._line, part)
            else:
                decode_parts([part])
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
