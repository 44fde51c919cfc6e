"""``packed`` decoded on a processor: several small layers in one call, keys turned on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..card.digest import Bytes
from ..kernels.ahead import ahead
from ..kernels.cpu_decode import decode_parts
from ..kernels.parts import Part
from .base import Into, LayerKV

if TYPE_CHECKING:
    from .packed import Packed

# Numbers of a job: threads that come back for less wait for each other.
_WORTH_A_JOB = 1 << 21


def decode(
    codec: Packed, pairs: Iterable[tuple[Bytes, Into]], then: Callable[[Into], None]
) -> Iterator[Into]:
    """As `Packed.decode`."""

    def work(job: list[tuple[Bytes, Into]]) -> list[Into]:
        decode_job(codec, job)
        for _, layer in job:
            then(layer)
        return [layer for _, layer in job]

    for done in ahead(work, together(pairs, _WORTH_A_JOB)):
        while done:  # nothing is held that the caller has let go
            yield done.pop(0)


def decode_job(codec: Packed, job: Sequence[tuple[Bytes, LayerKV]]) -> None:
    """Layers that are all on the processor; on the caller's thread. Raises `CardFormatError`."""
    parts = []
    for blob, layer in job:
        found = codec.open(blob, layer.shape)
        for rows, to, mean, angles in (
            (found.keys, layer.keys, found.mean, layer.angles),
            (found.values, layer.values, None, None),
        ):
            scales = rows.scales(to.shape[2])
            parts.append(Part(rows.codes, rows.info, scales, to, mean, angles))
    decode_parts(parts)


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
