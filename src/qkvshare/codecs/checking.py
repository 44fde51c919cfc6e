"""Whether all of a card can be decoded, found out without a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..card import Run
from ..card.container import Array, blob_name
from ..card.contents import Contents
from ..card.digest import Bytes
from ..card.errors import CardFormatError
from .records import from_record
from .runs import dtype_of, shapes_of

# Numbers for a byte; the least that codecs write for honest ones is some 0.1 bits a number. A
# receiver bounds what it decodes by its model, here only the file's own size does.
_MOST = 256


def check_numbers(card: Contents, tensors: Mapping[str, Array]) -> None:
    """Raise unless ``tensors``, all of ``card``'s and verified, decode to finite numbers.

    Raises the `CardError` family, `CodecError` or `ProfileError`.
    """
    dtype = dtype_of(card)
    for run in card.manifest.runs:
        codec, shapes = from_record(run.codec), shapes_of(card, run)
        blobs = list(_blobs(card, run, tensors))
        numbers = sum(at.kv_heads * at.tokens * (at.head_dim + at.v_head_dim) for at in shapes)
        nbytes = sum(map(len, blobs))
        if numbers > _MOST * nbytes:
            raise CardFormatError(
                f"segment {run.segment} has {nbytes:,} bytes for {numbers:,} numbers; expected "
                f"at most {_MOST} numbers a byte. The card was assembled by hand."
            )
        codec.check(blobs, shapes, dtype)


def _blobs(card: Contents, run: Run, tensors: Mapping[str, Array]) -> Iterator[Bytes]:
    """A run's bytes, layer by layer."""
    sizes = card.manifest.segments[run.segment].sizes
    if sizes is not None:
        yield from np.split(tensors[blob_name(0, run.segment)], np.cumsum(sizes)[:-1])
        return
    for layer in range(len(card.manifest.layers)):
        blob: Bytes = tensors[blob_name(layer, run.segment)]
        yield blob if run.spans is None else blob[run.spans[layer]]
