"""Bytes to a GPU while it works on those before: pinned memory, and a stream of its own.

Elsewhere nothing is copied and nothing is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGNED = 16  # bytes that kernels read at once


def pinned(data: npt.NDArray[np.uint8]) -> Tensor:
    """``data`` where a GPU can fetch it by itself: as it is, or copied there."""
    host = torch.from_numpy(data)
    return host if not torch.cuda.is_available() or host.is_pinned() else host.pin_memory()


class Copies:
    """A way to ``device``, beside what the caller's stream does."""

    def __init__(self, device: torch.device) -> None:
        """Opens a stream, where there are any."""
        self._device = device
        self._stream: Any = None
        self._rooms: list[Tensor] = []
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, pieces: Sequence[tuple[npt.NDArray[Any], int]]) -> list[Tensor]:
        """Begin to copy arrays, each so that byte ``whole`` of it lies at a multiple of `ALIGNED`:
        uint8 ``[bytes]`` of each ``(array, whole)``, not to be read before `arrived`."""
        hosts = [torch.from_numpy(array.view(np.uint8)) for array, _ in pieces]
        if self._stream is None:
            return hosts
        places, end = list[slice](), 0
        for host, (_, whole) in zip(hosts, pieces, strict=True):
            start = end + -(end + whole) % ALIGNED
            end = start + len(host)
            places.append(slice(start, end))
        hosts = _all_pinned(hosts)
        with torch.cuda.stream(self._stream):
            room = torch.empty(end, dtype=torch.uint8, device=self._device)
            sent = [room[at].copy_(host, True) for at, host in zip(places, hosts, strict=True)]
        self._rooms.append(room)
        return sent

    def arrived(self) -> None:
        """The caller's stream waits for what was sent so far, and uses it."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for room in self._rooms:
            room.record_stream(current)  # else its memory could be given away too soon
        self._rooms.clear()


def _all_pinned(hosts: list[Tensor]) -> list[Tensor]:
    """As they are, or copied to pinned memory, which is asked for once: that takes half a
    millisecond."""
    lies = [host.is_pinned() for host in hosts]
    loose = [len(host) for host, pinned in zip(hosts, lies, strict=True) if not pinned]
    room = torch.empty(sum(loose), dtype=torch.uint8, pin_memory=True)
    copies = iter(torch.split(room, loose))
    return [
        host if pinned else next(copies).copy_(host)
        for host, pinned in zip(hosts, lies, strict=True)
    ]
