"""Bytes on their way to a GPU, beside what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGNED = 16  # bytes that kernels read at once


class Copies:
    """Copies to ``device`` on a stream of their own, beside what the caller's stream does.

    On a processor nothing is copied and nothing is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        """Opens a stream, where there are any."""
        self._device = device
        self._stream: Any = None
        self._buffers: list[Tensor] = []
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, pieces: Sequence[tuple[npt.NDArray[Any], int]]) -> list[Tensor]:
        """Begin to copy arrays, each so that byte ``whole`` of it lies at a multiple of 16:
        uint8 ``[bytes]`` of each ``(array, whole)``, not to be read before `arrived`."""
        hosts = [torch.from_numpy(array.view(np.uint8)) for array, _ in pieces]
        if self._stream is None:
            return hosts
        slots, end = list[slice](), 0
        for host, (_, whole) in zip(hosts, pieces, strict=True):
            start = end + -(end + whole) % _ALIGNED
            end = start + len(host)
            slots.append(slice(start, end))
        hosts = _pinned(hosts)
        with torch.cuda.stream(self._stream):
            buffer = torch.empty(end, dtype=torch.uint8, device=self._device)
            sent = [buffer[at].copy_(host, True) for at, host in zip(slots, hosts, strict=True)]
        self._buffers.append(buffer)
        return sent

    def arrived(self) -> None:
        """The caller's stream waits for what was sent so far, and uses it."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for buffer in self._buffers:
            buffer.record_stream(current)  # else its memory could be given away too soon
        self._buffers.clear()


def _pinned(hosts: list[Tensor]) -> list[Tensor]:
    """As they are, or copied to pinned memory, which is asked for once: that takes half a
    millisecond."""
    pinned = [host.is_pinned() for host in hosts]
    loose = [len(host) for host, there in zip(hosts, pinned, strict=True) if not there]
    copies = iter(torch.split(torch.empty(sum(loose), dtype=torch.uint8, pin_memory=True), loose))
    return [
        host if there else next(copies).copy_(host)
        for host, there in zip(hosts, pinned, strict=True)
    ]
