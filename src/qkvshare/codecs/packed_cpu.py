"""``packed`` on a processor: several small layers in one call, keys rotated on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..card.digest import Bytes
from ..card.errors import CardFormatError
from ..kernels.background import BackgroundDecoder
from ..kernels.decode import decode_parts
from ..kernels.encode import Source
from ..kernels.encode import encode as encode_sources
from ..kernels.encode import measure as measure_sources
from ..kernels.native import fits
from ..kernels.parts import Part
from ..kernels.reference import eights
from .ahead import ahead
from .finite import require_finite
from .layers import Into, LayerKV
from .packed_layout import MEAN_TOKENS, PackedLayout, mean_bytes, require_dims, scales
from .tiered import Energy, LayerBits

READ_AS_IT_IS = torch.float32, torch.bfloat16
# Numbers of a job: threads that come back for less wait for each other.
_WORTH_A_JOB = 1 << 21
# Numbers whose bytes may have been read while nobody has begun to decode them.
_BEFOREHAND = 1 << 23

Job = list[tuple[Bytes, Into]]


def has_kernels(layer: LayerKV) -> bool:
    """Whether `encode` and `energies` take it."""
    dims = layer.keys.shape[2], layer.values.shape[2]
    return layer.keys.device.type == "cpu" and all(map(fits, dims))


def energies(layers: Sequence[LayerKV]) -> list[Energy]:
    """As `Packed.energies`."""
    out, sources = [], []
    for layer in layers:
        room = np.empty(mean_bytes(layer.shape), np.uint8)
        found = Energy(*(torch.empty(part.shape[:2]) for part in (layer.keys, layer.values)))
        mean = room if layer.keys.shape[1] >= MEAN_TOKENS else None
        sources += [
            Source(_readable(layer.keys), layer.angles, mean, found.keys.numpy()),
            Source(_readable(layer.values), None, None, found.values.numpy()),
        ]
        out.append(found)
    measure_sources(sources, min(2, torch.get_num_threads()))
    return out


def encode(job: Sequence[tuple[LayerKV, LayerBits]], threads: int = 1) -> list[Bytes]:
    """Layers as `Packed.encode`."""
    out, sources = [], []
    for layer, bits in job:
        mean, rows = mean_bytes(layer.shape), bits.keys.numel()
        sizes = [
            2 + rows + int(widths.sum()) * eights(part.shape[2]) // 8
            for widths, part in ((bits.keys, layer.keys), (bits.values, layer.values))
        ]
        blob = np.empty(mean + sum(sizes), np.uint8)
        first, keys, values = np.split(blob, np.cumsum([mean, sizes[0]]))
        sources += [
            _source(layer.keys, layer.angles, first if mean else None, keys, bits.keys),
            _source(layer.values, None, None, values, bits.values),
        ]
        out.append(blob)
    encode_sources(sources, threads)
    return out


def _source(
    part: Tensor, angles: tuple[Tensor, Tensor] | None, mean: Bytes | None, to: Bytes, bits: Tensor
) -> Source:
    return Source(_readable(part), angles, mean, to, bits.to("cpu", torch.uint8).contiguous())


def _readable(part: Tensor) -> Tensor:
    """In a number format that kernels read, a head's rows one behind the other."""
    part = part.detach()
    part = part if part.dtype in READ_AS_IT_IS else part.float()
    return part if part.stride()[1:] == (part.shape[2], 1) else part.contiguous()


def decode(
    pairs: Iterator[tuple[Bytes, Into]],
    then: Callable[[Into], None],
    there: Sequence[Into] | None,
) -> Iterator[Into]:
    """As `Packed.decode`; ``there`` are all layers, where the memory of all is there."""
    if there is not None:
        yield from _decode_there(pairs, then, there)
        return

    def work(job: Job[Into]) -> list[Into]:
        decode_job(job)
        for _, layer in job:
            then(layer)
        return [layer for _, layer in job]

    for done in ahead(work, together(pairs, _WORTH_A_JOB)):
        while done:  # nothing is held that the caller has let go
            yield done.pop(0)


def _decode_there(
    pairs: Iterator[tuple[Bytes, Into]],
    then: Callable[[Into], None],
    layers: Sequence[Into],
) -> Sequence[Into]:
    """By two threads: see `BackgroundDecoder`. ``then`` is called when all are decoded."""
    require_dims(layers[0].shape, CardFormatError)  # before the first layer's rotation is made
    wild = list[LayerKV]()
    with BackgroundDecoder(2 * len(layers), _BEFOREHAND) as decoder:
        for blob, layer in pairs:
            decoder.add(opened([(blob, layer)], wild))
            del blob
    require_tame(wild)
    for layer in layers:
        then(layer)
    return layers


def opened(job: Sequence[tuple[Bytes, LayerKV]], wild: list[LayerKV]) -> list[Part]:
    """What the kernel is told of layers that are all on the processor. Those whose numbers must be
    looked at, see `PackedLayout.tame`, are added to ``wild``. Raises `CardFormatError`."""
    parts = []
    for blob, layer in job:
        found = PackedLayout.of(blob, layer.shape)
        if not found.tame(layer.shape, layer.keys.dtype):
            wild.append(layer)
        for rows, to, mean, angles in (
            (found.keys, layer.keys, found.mean, layer.angles),
            (found.values, layer.values, None, None),
        ):
            own = scales(rows.top, to.shape[2])
            parts.append(Part(rows.codes, rows.info, own, to, mean, angles))
    return parts


def decode_job(job: Sequence[tuple[Bytes, LayerKV]]) -> None:
    """Layers that are all on the processor, on the caller's thread. Raises `CardFormatError`."""
    wild = list[LayerKV]()
    decode_parts(opened(job, wild))
    require_tame(wild)


def require_tame(layers: Sequence[LayerKV]) -> None:
    """Raise `CardFormatError` for decoded numbers that are not finite."""
    for layer in layers:
        for part in (layer.keys, layer.values):
            require_finite(part, part.dtype, "packed")


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
