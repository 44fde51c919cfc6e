"""Decode on a second thread what the first one is still reading, checking and opening.

Two threads that both run Python wait for each other at every call, for milliseconds. So the second
one is in a kernel all the time: the first tells it of a part by writing to memory that both share,
and takes parts itself when it has opened the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, wait
from threading import Event
from typing import Self

import torch
from torch import Tensor

from .ahead import beside
from .cpu_decode import FORMATS, Line, decode_parts
from .operators import LARGEST
from .parts import Part
from .rotation import power_of_two

_MOMENT = 1e-3  # seconds in which a thread that nobody else needs begins


class Meanwhile:
    """Used in a ``with`` block, at whose end all parts are decoded; after an error no more are.

    Parts that the second thread cannot take, of other number formats or of another ``dim`` than the
    first one, are decoded at once.
    """

    def __init__(self, first: Tensor, most: int, beforehand: int) -> None:
        """For ``most`` parts, of which ``first`` has the usual numbers. As many of theirs as
        ``beforehand`` may wait to be decoded; with more the caller decodes."""
        self._alone = torch.get_num_threads() == 1
        self._beforehand = 0 if self._alone else beforehand
        self._kind = first.shape[2], first.dtype
        fits = first.dtype in FORMATS and power_of_two(first.shape[2]) <= LARGEST
        self._line = Line(*self._kind, room=most) if fits else None
        self._kept = list[tuple[int, Part]]()  # not decoded, as far as is known
        self._begun, self._waited = Event(), False
        self._other: Future[None] | None = None
        if self._line is not None:
            self._begin(self._line)

    def add(self, parts: Sequence[Part]) -> None:
        """Have ``parts`` decoded, or some of those before."""
        line = self._line
        for part in parts:
            if line is None or self._kind != (part.numbers.shape[2], part.numbers.dtype):
                decode_parts([part])
            elif part.numbers.numel():
                self._kept.append((line.added, part))
                line.add(part)
        if line is None:
            return
        while self._waiting(line) > self._beforehand:
            line.decode(most=1)
        # Not in order: the other thread may stand still at an early one.
        self._kept = [each for each in self._kept if not line.decoded(each[0])]
        if self._other is not None and self._other.done():
            self._begin(line)
        elif self._other is not None and not self._waited:
            self._waited = self._begun.wait(_MOMENT) or True

    def _waiting(self, line: Line) -> int:
        """Numbers of parts that nobody has begun."""
        return sum(part.numbers.numel() for n, part in self._kept if n >= line.taken)

    def _begin(self, line: Line) -> None:
        def work() -> None:
            self._begun.set()
            line.decode(waits=True)

        if self._other is not None:
            self._other.result()
        self._other = None if self._alone else beside(work)

    def __enter__(self) -> Self:
        """The second thread is on its way."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """What the second thread is at is waited for: it writes to what the caller holds."""
        if self._line is not None:
            if kind is None:
                self._line.decode()
            self._line.close()
        if self._other is not None and not self._other.cancel():
            wait([self._other])
            if kind is None:
                self._other.result()
