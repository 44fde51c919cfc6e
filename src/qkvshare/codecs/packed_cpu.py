"""``packed`` decoded on a processor: several small layers in one call, keys turned on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

import torch

from ..card.digest import Bytes
from ..kernels.ahead import ahead, beside
from ..kernels.cpu_decode import decode_parts
from ..kernels.parts import Part
from .base import Into, LayerKV

if TYPE_CHECKING:
    from .packed import Packed

# Numbers of a job: threads that come back for less wait for each other.
_WORTH_A_JOB = 1 << 21
# Numbers whose bytes may have been read and not been decoded.
_BEFOREHAND = 1 << 23

Job = list[tuple[Bytes, Into]]


def decode(
    codec: Packed, pairs: Iterator[tuple[Bytes, Into]], then: Callable[[Into], None], there: bool
) -> Iterator[Into]:
    """As `Packed.decode`; ``there`` says that the memory of all layers is."""
    if there:
        yield from _decode_there(codec, pairs, then)
        return

    def work(job: Job[Into]) -> list[Into]:
        decode_job(codec, job)
        for _, layer in job:
            then(layer)
        return [layer for _, layer in job]

    for done in ahead(work, together(pairs, _WORTH_A_JOB)):
        while done:  # nothing is held that the caller has let go
            yield done.pop(0)


def _decode_there(
    codec: Packed, pairs: Iterator[tuple[Bytes, Into]], then: Callable[[Into], None]
) -> list[Into]:
    """All layers. The caller's thread reads, checks and opens them, and another one decodes: two
    that both run Python wait for each other at every call. Who reads faster decodes too."""
    layers, jobs = list[Into](), deque[tuple[Future[None], list[Part], list[Into]]]()
    alone = torch.get_num_threads() == 1
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def work(parts: list[Part], some: list[Into]) -> None:
        # Both modes are a thread's own.
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            decode_parts(parts)
            for layer in some:
                then(layer)

    try:
        for job in together(pairs, _WORTH_A_JOB):
            parts, some = opened(codec, job), [layer for _, layer in job]
            layers += some
            while jobs and jobs[0][0].done():
                jobs.popleft()[0].result()
            waiting = sum(_numbers(some) for future, _, some in jobs if not future.running())
            if alone or waiting >= _BEFOREHAND:
                work(parts, some)
            else:
                jobs.append((beside(work, parts, some), parts, some))
            del job, parts, some
        while jobs:
            future, parts, some = jobs.pop()
            if future.cancel():  # it has not begun
                work(parts, some)
            else:
                jobs.append((future, parts, some))
                break
    finally:
        # It writes to what the caller holds.
        wait([future for future, _, _ in jobs if not future.cancel()])
    for future, _, _ in jobs:
        future.result()
    return layers


def opened(codec: Packed, job: Sequence[tuple[Bytes, LayerKV]]) -> list[Part]:
    """What the kernel is told of layers that are all on the processor. Raises `CardFormatError`."""
    parts = []
    for blob, layer in job:
        found = codec.open(blob, layer.shape)
        for rows, to, mean, angles in (
            (found.keys, layer.keys, found.mean, layer.angles),
            (found.values, layer.values, None, None),
        ):
            scales = rows.scales(to.shape[2])
            parts.append(Part(rows.codes, rows.info, scales, to, mean, angles))
    return parts


def decode_job(codec: Packed, job: Sequence[tuple[Bytes, LayerKV]]) -> None:
    """Layers that are all on the processor, on the caller's thread. Raises `CardFormatError`."""
    decode_parts(opened(codec, job))


def _numbers(layers: Iterable[LayerKV]) -> int:
    return sum(layer.keys.numel() + layer.values.numel() for layer in layers)


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
