"""A card as the bytes of its file, passed on piece by piece: never all of it in memory."""

from __future__ import annotations

from collections.abc import Iterator

from .card import CacheCard
from .container import header

MEDIA_TYPE = "application/vnd.qkvshare.card"


class Passing:
    """The file that ``card.save`` would write, any part of it; tensors are verified as they pass.

    Attributes:
        nbytes: length of the file.
    """

    def __init__(self, card: CacheCard) -> None:
        """Work out the header; nothing else is read."""
        self._card = card
        self._header, self._places = header(card.tensors, card.metadata())
        self.nbytes = max((at.stop for at in self._places.values()), default=len(self._header))

    def __call__(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes ``[start, stop)``, a tensor at a time.

        Raises `CardDigestError` at the first tensor that is damaged, before any of it.
        """
        stop = self.nbytes if stop is None else stop
        if start < len(self._header):
            yield self._header[start:stop]
        for name, at in self._places.items():
            if at.start < stop and start < at.stop:
                data = self._card.tensor(name).tobytes()
                yield data[max(0, start - at.start) : stop - at.start]
