"""A card's segments taken apart and put together; bytes are moved, nothing is encoded again."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import numpy as np
from msgspec.structs import replace

from .container import Array, blob_name, ids_name
from .contents import Contents
from .digest import Bytes, digest_bytes, empty_chain, extend_chain, is_digest
from .errors import CardError, CardThinError
from .manifest import Manifest, PartRecord, Segment


def without(card: Contents, parent: Contents) -> dict[str, Array]:
    """The tensors of ``card`` but for ``parent``'s bytes; raises as `CacheCard.without`."""
    shared = len(parent.manifest.segments)
    if card.manifest.segments[:shared] != parent.manifest.segments:
        raise CardError(
            f"the card does not begin with the {shared} segments of the parent "
            f"{parent.digest[:12]}…{_salts(card, parent)}; expected a card that was captured "
            "from it."
        )
    gone = set(_blob_names(card.manifest, shared))
    return {name: card.tensors[name] for name in card.tensors if name not in gone}


def whole(card: Contents, parent: Contents) -> dict[str, Array]:
    """The tensors of a thin ``card``, and ``parent``'s for it; raises as `CacheCard.whole`."""
    lacking = card.manifest.segments[: card.thin]
    if parent.manifest.segments[: card.thin] != lacking or parent.thin:
        raise CardThinError(
            f"the card {parent.digest[:12]}… does not have the {card.thin} segments that the "
            f"thin card lacks{_salts(card, parent)}. Expected the card it was made thin "
            "against, or a longer one."
        )
    taken = {name: parent.tensors[name] for name in _blob_names(card.manifest, card.thin)}
    return {**taken, **card.tensors}


def head(card: Contents, tokens: int) -> tuple[list[Segment], dict[str, Array]]:
    """The first ``tokens`` tokens' segments and tensors; raises as `CacheCard.head`."""
    ends = [segment.end for segment in card.manifest.segments]
    if tokens not in ends:
        raise CardError(
            f"the card cannot be cut after {tokens} tokens; its segments end after "
            f"{', '.join(map(str, ends[:10]))}. Nothing is encoded again, so cut there."
        )
    kept = ends.index(tokens) + 1
    names = [*map(ids_name, range(kept)), *_blob_names(card.manifest, kept)]
    tensors = {name: card.tensors[name] for name in names if name in card.tensors}
    return card.manifest.segments[:kept], tensors


def _salts(card: Contents, parent: Contents) -> str:
    """The reason where it is this one, for a message."""
    return ", which has another salt" if parent.manifest.salt != card.manifest.salt else ""


def _blob_names(manifest: Manifest, segments: int) -> list[str]:
    """The tensors that hold the bytes of the first ``segments`` segments."""
    first = enumerate(manifest.segments[:segments])
    return [blob_name(at, n) for n, each in first for at in range(len(each.blobs))]


def merge(card: Contents) -> tuple[Segment, dict[str, Array]]:
    """The segment that all runs make together, and its tensors. Raises `CardThinError`."""
    manifest, ids = card.manifest, card.token_ids
    runs, layers, salt = manifest.runs, len(manifest.layers), manifest.salt
    prefix = empty_chain(salt)
    # A segment's layers may share one blob, so each segment is read once, and not for every layer.
    pieces: list[list[Bytes]] = [[] for _ in range(layers)]
    for index, own in groupby(runs, lambda run: run.segment):
        spans = [run.spans for run in own]
        for layer, blob in enumerate(card.blobs(index)):
            pieces[layer] += [blob if at is None else blob[at[layer]] for at in spans]
    blobs = [np.concatenate(of) for of in pieces]
    states = [card.state_blob(len(manifest.segments) - 1)] if manifest.states else []
    parts = [
        PartRecord(run.end, run.codec, run.allocation, [len(of[at]) for of in pieces], run.first)
        for at, run in enumerate(runs)
    ]
    segment = replace(
        manifest.segments[-1],
        start=0,
        prefix=prefix,
        chain=extend_chain(prefix, ids, salt),
        blobs=[digest_bytes(blob, salt) for blob in [*blobs, *states]],
        first=None,
        sizes=None,
        parts=parts,
    )
    named = {blob_name(at, 0): blob for at, blob in enumerate([*blobs, *states])}
    return segment, {ids_name(0): ids} | named


def resalt(manifest: Manifest, tensors: Mapping[str, Array], salt: str | None) -> Manifest:
    """The manifest with digests of ``tensors`` under ``salt``; raises as `CacheCard.salted`."""
    if salt is not None and not is_digest(salt):
        raise CardError("the salt is malformed; expected 64 lower-case hex digits.")
    segments, chain = [], empty_chain(salt)
    for index, segment in enumerate(manifest.segments):
        prefix, chain = chain, extend_chain(chain, tensors[ids_name(index)], salt)
        blobs = [tensors[blob_name(at, index)] for at in range(len(segment.blobs))]
        names = [digest_bytes(blob, salt) for blob in blobs]
        segments.append(replace(segment, prefix=prefix, chain=chain, blobs=names))
    return replace(manifest, segments=segments, salt=salt)
