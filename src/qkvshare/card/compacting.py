"""Make one segment of many: bytes are moved, codes stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from .container import Array, blob_name, ids_name
from .digest import Bytes, TokenIds, digest_bytes, empty_chain, extend_chain
from .manifest import Manifest, Part, Segment


def merge(
    manifest: Manifest, ids: TokenIds, blob_of: Callable[[int, int], Bytes]
) -> tuple[Segment, dict[str, Array]]:
    """The segment that all of ``manifest``'s runs make together, and its tensors.

    ``ids`` are the whole context's, ``blob_of(layer, segment)`` the bytes of a layer.
    """
    runs, layers, salt = manifest.runs, range(len(manifest.layers)), manifest.salt
    prefix = empty_chain(salt)
    blobs: list[Bytes] = []
    sizes: list[list[int]] = []
    for layer in layers:
        whole = [blob_of(layer, n) for n in range(len(manifest.segments))]
        pieces = [
            whole[run.segment][run.spans[layer] if run.spans else slice(None)] for run in runs
        ]
        sizes.append([len(piece) for piece in pieces])
        blobs.append(np.concatenate(pieces))
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
