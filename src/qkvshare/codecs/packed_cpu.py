"""``packed`` decoded on a processor: several small layers in one call, keys turned on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch

from ..card.digest import Bytes
from ..kernels.ahead import ahead
from ..kernels.cpu_decode import decode_parts
from ..kernels.parts import Part
from .base import Into, LayerKV

if TYPE_CHECKING:
    from .packed import Packed

# Numbers of a job: threads that come back for less wait for each other.
_WORTH_A_JOB = 1 << 21
# Numbers of a card that is decoded in one call, where its memory is there anyway: threads that
# open layers beside each other gain less than they wait.
_AT_ONCE = 1 << 25


def decode(
    codec: Packed, pairs: Iterator[tuple[Bytes, Into]], then: Callable[[Into], None], there: bool
) -> Iterator[Into]:
    """As `Packed.decode`; ``there`` says that the memory of all layers is."""
    if there:
        first = next(together(pairs, _AT_ONCE), [])
        if _numbers(first) < _AT_ONCE:  # so these are all
            decode_job(codec, first, min(2, torch.get_num_threads()))
            for _, layer in first:
                then(layer)
                yield layer
            return
        pairs = chain(first, pairs)

    def work(job: list[tuple[Bytes, Into]]) -> list[Into]:
        decode_job(codec, job)
        for _, layer in job:
            then(layer)
        return [layer for _, layer in job]

    for done in ahead(work, together(pairs, _WORTH_A_JOB)):
        while done:  # nothing is held that the caller has let go
            yield done.pop(0)


def decode_job(codec: Packed, job: Sequence[tuple[Bytes, LayerKV]], threads: int = 1) -> None:
    """Layers that are all on the processor. Raises `CardFormatError`."""
    parts = []
    for blob, layer in job:
        found = codec.open(blob, layer.shape)
        for rows, to, mean, angles in (
            (found.keys, layer.keys, found.mean, layer.angles),
            (found.values, layer.values, None, None),
        ):
            scales = rows.scales(to.shape[2])
            parts.append(Part(rows.codes, rows.info, scales, to, mean, angles))
    decode_parts(parts, threads)


def _numbers(job: Sequence[tuple[Bytes, LayerKV]]) -> int:
    return sum(layer.keys.numel() + layer.values.numel() for _, layer in job)


def together(
    layers: Iterable[tuple[Bytes, Into]], worth: int
) -> Iterator[list[tuple[Bytes, Into]]]:
    """Layers in jobs of at least ``worth`` numbers, but for the last."""
    job, size = list[tuple[Bytes, Into]](), 0
    for blob, layer in layers:
        job.append((blob, layer))
        size += layer.keys.numel() + layer.values.numel()
        if size >= worth:
            yield job
            job, size = [], 0
    if job:
        yield job
