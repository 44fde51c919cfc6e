"""``packed`` decoded on a GPU: bytes are copied while layers before are decoded, keys are turned on
the way, and as many layers go into a launch as make it worth one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..card.digest import Bytes
from ..kernels.ahead import ahead
from ..kernels.cuda_copy import Copies, pinned
from ..kernels.cuda_decode import decode_parts
from ..kernels.levels import LOWEST
from ..kernels.parts import Part
from .base import Into, LayerKV
from .packed import Packed
from .packed_cpu import together
from .packed_layout import HIGHEST, Layout, Rows

# A layer to be decoded: what its bytes are, the bytes, and where to.
Ready = tuple[Layout, Tensor, LayerKV]

# Numbers of a launch: on fast GPUs writing them takes longer than starting it.
WORTH_A_LAUNCH = 1 << 25


@cache
def _scales_on(device: torch.device, dim: int) -> Tensor:
    """Of all exponents: those up to ``top`` are ``[top - LOWEST : top - LOWEST + 32]``."""
    nothing = np.empty(0, np.uint8)
    tables = [Rows(top, nothing, nothing).scales(dim) for top in range(LOWEST, HIGHEST + 1)]
    first = [table[:1] for table in tables[:-1]]
    return torch.from_numpy(np.concatenate([*first, tables[-1]])).to(device)


def parts_of(layout: Layout, blob: Tensor, mean: Tensor | None, layer: LayerKV) -> list[Part]:
    """Keys and values of one layer; ``blob`` and ``mean`` are where ``layer`` is.

    Args:
        layout: of the same bytes, see `Packed.open`.
        blob: uint8 ``[bytes]``.
        mean: float32 ``[kv_heads, head_dim]``; None where none was taken away.
        layer: where to; keys are turned by its `LayerKV.angles`.
    """
    parts, at = [], layout.start
    for rows, to in ((layout.keys, layer.keys), (layout.values, layer.values)):
        at += 2
        info = blob[at : at + len(rows.info)]
        at += len(rows.info)
        codes = blob[at : at + len(rows.codes)]
        at += len(rows.codes)
        table = _scales_on(blob.device, to.shape[2])[rows.top - LOWEST :]
        mine = to is layer.keys
        parts.append(
            Part(codes, info, table, to, mean if mine else None, layer.angles if mine else None)
        )
    return parts


def decode(
    codec: Packed, pairs: Iterable[tuple[Bytes, Into]], then: Callable[[Into], None]
) -> Iterator[Into]:
    """As `Packed.decode`; layers on the processor are decoded there. Nothing waits for a GPU."""

    def prepare(job: list[tuple[Bytes, Into]]) -> tuple[list[Ready], list[Into]]:
        ready: list[Ready] = []
        for blob, to in job:
            if to.keys.device.type == "cpu":
                codec.decode_layer(blob, to)
            else:
                ready.append((codec.open(blob, to.shape), pinned(blob), to))
        return ready, [to for _, to in job]

    ways: dict[torch.device, Copies] = {}
    for ready, layers in ahead(prepare, together(pairs, WORTH_A_LAUNCH)):
        for device in dict.fromkeys(to.keys.device for _, _, to in ready):
            way = ways.setdefault(device, Copies(device))
            decode_job([one for one in ready if one[2].keys.device == device], way)
        for to in layers:
            then(to)
            yield to


def decode_job(job: Sequence[Ready], way: Copies) -> None:
    """Layers that are all where ``way`` leads to."""
    none = np.empty(0, np.float32)
    means = [none if layout.mean is None else layout.mean.ravel() for layout, _, _ in job]
    sent = [way.send(pinned(np.concatenate(means).view(np.uint8)))]
    sent += [way.send(data) for _, data, _ in job]
    way.arrived(sent)
    split = torch.split(sent[0].view(torch.float32), [mean.size for mean in means])
    parts: list[Part] = []
    for (layout, _, to), data, mean in zip(job, sent[1:], split, strict=True):
        there = None if layout.mean is None else mean.view(layout.mean.shape)
        parts += parts_of(layout, data, there, to)
    decode_parts(parts)
