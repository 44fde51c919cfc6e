"""``packed`` decoded on a GPU: bytes are copied while layers before are decoded, keys are rotated
on the way, and as many layers are decoded together as make it worth the commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..card.digest import Bytes
from ..kernels.cuda_decode import decode_parts
from ..kernels.levels import LOWEST
from ..kernels.parts import Part
from . import packed_cpu
from .copies import Copies
from .layers import Into, LayerKV
from .packed_cpu import require_tame, together
from .packed_layout import HIGHEST, PackedLayout, Rows, scales

# A layer to be decoded: what its bytes are, the bytes, and where to.
Ready = tuple[PackedLayout, Bytes, LayerKV]

# Numbers of a job: to command one takes as long as a fast GPU needs for so many.
WORTH_A_JOB = 1 << 27


@cache
def _scales_on(device: torch.device, dim: int) -> Tensor:
    """Of all exponents: those up to ``top`` are ``[top - LOWEST : top - LOWEST + 32]``."""
    tables = [scales(top, dim) for top in range(LOWEST, HIGHEST + 1)]
    first = [table[:1] for table in tables[:-1]]
    return torch.from_numpy(np.concatenate([*first, tables[-1]])).to(device)


def send(job: Sequence[Ready], way: Copies) -> list[Part]:
    """Keys and values of layers that are all where ``way`` leads to, keys rotated by their
    `LayerKV.angles`; to be decoded once they have arrived."""
    none = np.empty(0, np.float32)
    means = [none if layout.mean is None else layout.mean.ravel() for layout, _, _ in job]
    pieces: list[tuple[npt.NDArray[Any], int]] = [(np.concatenate(means), 0)]
    for layout, blob, _ in job:
        at = layout.start
        for rows in (layout.keys, layout.values):
            at, split = at + 2, len(rows.info)  # behind the exponent
            pieces.append((blob[at : at + split + len(rows.codes)], split))
            at += split + len(rows.codes)
    first, *sent = way.send(pieces)
    there = torch.split(first.view(torch.float32), [len(mean) for mean in means])
    parts: list[Part] = []
    for (layout, _, to), mean, keys, values in zip(job, there, sent[::2], sent[1::2], strict=True):
        own = None if layout.mean is None else mean.view(layout.mean.shape)
        parts.append(_part(layout.keys, keys, to.keys, own, to.angles))
        parts.append(_part(layout.values, values, to.values))
    return parts


def _part(rows: Rows, sent: Tensor, numbers: Tensor, *more: Any) -> Part:
    split = len(rows.info)
    own = _scales_on(sent.device, numbers.shape[2])[rows.top - LOWEST :]
    return Part(sent[split:], sent[:split], own, numbers, *more)


def decode(pairs: Iterable[tuple[Bytes, Into]], then: Callable[[Into], None]) -> Iterator[Into]:
    """As `Packed.decode`; layers on the processor are decoded there. Nothing waits for a GPU,
    but for layers whose exponents are so large that the numbers must be looked at.

    On the caller's thread: one that has spoken to a GPU takes ten milliseconds to end.
    """
    ways: dict[torch.device, Copies] = {}
    for job in together(pairs, WORTH_A_JOB):
        ready, wild = list[Ready](), list[LayerKV]()
        for blob, to in job:
            if to.keys.device.type == "cpu":
                packed_cpu.decode_job([(blob, to)])
            else:
                layout = PackedLayout.of(blob, to.shape)
                ready.append((layout, blob, to))
                if not layout.tame(to.shape, to.keys.dtype):
                    wild.append(to)
        for device in dict.fromkeys(to.keys.device for _, _, to in ready):
            way = ways.setdefault(device, Copies(device))
            decode_job([one for one in ready if one[2].keys.device == device], way)
        require_tame(wild)
        for _, to in job:
            then(to)
            yield to


def decode_job(job: Sequence[Ready], way: Copies) -> None:
    """Layers that are all where ``way`` leads to."""
    parts = send(job, way)
    way.arrived()
    decode_parts(parts)
