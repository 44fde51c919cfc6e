"""A card as JSON types: what `qkvshare inspect`, the MCP server and the viewer tell of it."""

from __future__ import annotations

from typing import Any

import msgspec

from ..card import CacheCard
from .stats import sizes


def describe(card: CacheCard) -> dict[str, Any]:
    """All that a card's header says, but for digests of its bytes; nothing else is read.

    Times are ISO 8601, or None. The signature is not checked here. Sizes are of the whole file, and
    ``bytes`` are by kind, see `sizes`. ``segments`` has one entry for each run of tokens that was
    encoded at once, with the number of its segment and whether its bytes are ``here``.

    Raises `CodecError` or `CardError` for a codec or parameters that are unknown here.
    """
    manifest = card.manifest
    return {
        "digest": card.digest,
        "created": manifest.created.isoformat(),
        "expires": None if manifest.expires is None else manifest.expires.isoformat(),
        "sealed": card.sealed,
        "salt": manifest.salt,
        "signature": msgspec.to_builtins(card.signature),
        "tokens": card.tokens,
        "nbytes": card.nbytes,
        "bits_per_value": card.bits_per_value,
        "bytes": sizes(card),
        "identity": msgspec.to_builtins(manifest.identity),
        "layers": msgspec.to_builtins(manifest.layers),
        "segments": [
            {
                "segment": run.segment,
                "start": run.start,
                "end": run.end,
                "codec": msgspec.to_builtins(run.codec),
                "allocation": msgspec.to_builtins(run.allocation),
                "here": run.segment >= card.thin,
            }
            for run in manifest.runs
        ],
        "lineage": [msgspec.structs.asdict(hop) for hop in manifest.lineage],
    }
