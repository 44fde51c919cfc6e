"""How the objects of a remote store are named: as the files of a local one, and an index in names.

A local store's folder can be uploaded as it is. There is no database: empty objects stand for what
is asked, all of it in their names::

    cards/ab/<digest>.card            header and token ids
    segments/ab/<name>.segment        a segment's bytes
    prefixes/<block>/<length>-<tokens of the card>-<prefix>-<digest>
    agents/<digest of the agent's name>/<created>-<hops>-<digest>
    condemned/<name>                  a segment that `RemoteStore.gc` will remove

A prefix is filed under the block that ends with a power of two of whole blocks, the last that is
not behind its end. So a prompt of n blocks asks for log n listings, the longest prefixes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ..card import CacheCard
from ..card.digest import digest_bytes, is_digest
from .catalog import Match
from .prefixes import BLOCK, Prefixes

_PREFIX = re.compile(r"(\d{1,10})-(\d{1,10})-([0-9a-f]{64})-([0-9a-f]{64})")


def card_at(digest: str) -> str:
    """A card's header and ids."""
    return f"cards/{digest[:2]}/{digest}.card"


def segment_at(name: str) -> str:
    """A segment's bytes."""
    return f"segments/{name[:2]}/{name}.segment"


def agent_at(agent: str) -> str:
    """The folder of an agent's cards."""
    return f"agents/{digest_bytes(agent.encode())}"


def index_names(card: CacheCard) -> list[str]:
    """Names of the objects by which `match` and `latest` find a card."""
    manifest, prefixes = card.manifest, Prefixes.of(card.token_ids, card.manifest.identity)
    names = [
        f"prefixes/{_shelf(prefixes, end).hex()}/{end}-{card.tokens}-{prefixes.name(end).hex()}"
        for end in (segment.end for segment in manifest.segments)
    ]
    names.append(
        f"{agent_at(manifest.lineage[-1].agent)}/"
        f"{int(manifest.created.timestamp()):012d}-{len(manifest.lineage):05d}"
    )
    return [f"{name}-{card.digest}" for name in names]


def _shelf(prefixes: Prefixes, length: int) -> bytes:
    """The block that a prefix is filed under, of a sequence; see the top."""
    blocks = length // BLOCK
    return prefixes.blocks[1 << (blocks.bit_length() - 1) if blocks else 0]


def last_part(name: str) -> str:
    """A name without its folders."""
    return name.rpartition("/")[2]


def digest_in(name: str) -> str:
    """Of the card or segment in an object named so, "" for another object."""
    stem = last_part(name).partition(".")[0]
    return stem if name in (card_at(stem), segment_at(stem)) and is_digest(stem) else ""


def shelves(prefixes: Prefixes) -> Iterator[str]:
    """Where the prefixes of a prompt may be, those of the longest first."""
    blocks = len(prefixes.blocks) - 1
    for at in [*reversed([1 << bit for bit in range(blocks.bit_length())]), 0]:
        yield f"prefixes/{prefixes.blocks[at].hex()}"


def matches(names: Iterable[str], prefixes: Prefixes) -> list[Match]:
    """Those of ``names`` that are prefixes of a prompt, the longest first, of the shortest card."""
    found = [hit.groups() for name in names if (hit := _PREFIX.fullmatch(last_part(name)))]
    found.sort(key=lambda parts: (-int(parts[0]), int(parts[1])))
    return [
        Match(digest, int(length))
        for length, _, prefix, digest in found
        if int(length) <= prefixes.tokens and prefixes.name(int(length)).hex() == prefix
    ]
