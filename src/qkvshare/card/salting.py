"""Take a card's digests anew, under another salt or none."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from .container import Array, blob_name, ids_name
from .digest import digest_bytes, empty_chain, extend_chain, is_digest
from .errors import CardError
from .manifest import Manifest


def resalt(manifest: Manifest, tensors: Mapping[str, Array], salt: str | None) -> Manifest:
    """``manifest`` with all digests of ``tensors``, which are verified and whole, under ``salt``.

    Raises `CardError` for what is no salt.
    """
    if salt is not None and not is_digest(salt):
        raise CardError("the salt is malformed; expected 64 lower-case hex digits.")
    segments, chain = [], empty_chain(salt)
    for index, segment in enumerate(manifest.segments):
        prefix, chain = chain, extend_chain(chain, tensors[ids_name(index)], salt)
        blobs = [tensors[blob_name(at, index)] for at in range(len(segment.blobs))]
        names = [digest_bytes(blob, salt) for blob in blobs]
        segments.append(replace(segment, prefix=prefix, chain=chain, blobs=names))
    return replace(manifest, segments=segments, salt=salt)
