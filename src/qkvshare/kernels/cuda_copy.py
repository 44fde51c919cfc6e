"""Bytes to a GPU while it works on those before: pinned memory, and a stream of its own.

Elsewhere nothing is copied and nothing is waited for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


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
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, host: Tensor) -> Tensor:
        """Begin to copy `pinned` bytes; not to be read before `arrived`."""
        if self._stream is None:
            return host
        with torch.cuda.stream(self._stream):
            return host.to(self._device, non_blocking=True)

    def arrived(self, sent: list[Tensor]) -> None:
        """The caller's stream waits for what was sent so far, and uses ``sent``."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for data in sent:
            data.record_stream(current)  # else its memory could be given away too soon
