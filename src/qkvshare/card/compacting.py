"""Make one segment of many: bytes are moved, codes stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import msgspec
import numpy as np

from .container import Array, blob_name, ids_name
from .digest import Bytes, TokenIds, digest_bytes, empty_chain, extend_chain
from .manifest import Manifest, Part, Segment


def merge(
    manifest: Manifest, ids: TokenIds, blobs_of: Callable[[int], Iterator[Bytes]]
) -> tuple[Segment, dict[str, Array]]:
    """The segment that all of ``manifest``'s runs make together, and its tensors.

    ``ids`` are the whole context's, ``blobs_of(segment)`` the bytes of its layers, one by one.
    """
    runs, layers, salt = manifest.runs, len(manifest.layers), manifest.salt
    prefix = empty_chain(salt)
    # A segment's layers may share one blob, so each segment is read once, and not for every layer.
    pieces: list[list[Bytes]] = [[] for _ in range(layers)]
    for index, own in groupby(runs, lambda run: run.segment):
        spans = [run.spans for run in own]
        for layer, blob in enumerate(blobs_of(index)):
            pieces[layer] += [blob if at is None else blob[at[layer]] for at in spans]
    sizes = [[len(piece) for piece in of] for of in pieces]
    blobs = [np.concatenate(of) for of in pieces]
    parts = [
        Part(run.end, run.codec, run.allocation, list(each), run.first)
        for run, each in zip(runs, zip(*sizes, strict=True), strict=True)
    ]
    segment = msgspec.structs.replace(
        manifest.segments[-1],
        start=0,
        prefix=prefix,
        chain=extend_chain(prefix, ids, salt),
        blobs=[digest_bytes(blob, salt) for blob in blobs],
        first=None,
        sizes=None,
        parts=parts,
    )
    tensors = {ids_name(0): ids} | {blob_name(layer, 0): blob for layer, blob in enumerate(blobs)}
    return segment, tensors
