"""Where a card's segments end, so that prompts which go on otherwise from there find a beginning.

A state cannot be taken back, so a model that keeps states goes on from the end of a segment or not
at all. Any other model can go on from any token, and a store finds beginnings at the ends, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from msgspec.structs import replace
from transformers import PreTrainedTokenizerBase

from ...card import CacheCard, Hop
from ...card.digest import TokenIds
from ...card.errors import CaptureError
from ..text.literal import literal
from ..text.messages import Message

Checkpoints = int | Sequence[int] | Literal["messages"]


def ends_of(
    checkpoints: Checkpoints,
    tokenizer: PreTrainedTokenizerBase | None,
    source: Any,
    ids: TokenIds,
    start: int,
) -> list[int]:
    """The ends of the segments that hold ``ids`` from ``start`` on; the last one is their number.

    Raises `CaptureError` for positions that are none.
    """
    if isinstance(checkpoints, str):
        found = _message_ends(tokenizer, source, ids) if checkpoints == "messages" else None
    elif isinstance(checkpoints, int):
        found = list(range(checkpoints, len(ids), checkpoints)) if checkpoints > 0 else None
    else:
        found = [int(at) for at in checkpoints]
    if found is None or not all(0 < at <= len(ids) for at in found):
        raise CaptureError(
            f"checkpoints={checkpoints!r} of {len(ids)} tokens; expected a number of tokens above "
            "0, positions up to the end, or 'messages' with messages as the source."
        )
    return sorted({at for at in found if at > start} | {len(ids)})


def as_one_hop(card: CacheCard, parent: CacheCard | None, agent: str) -> CacheCard:
    """The same segments, as one hand-off that added all of those after ``parent``'s."""
    lineage = [] if parent is None else parent.manifest.lineage
    hop = Hop(
        hop=len(lineage),
        agent=agent,
        tokens_added=card.tokens - (0 if parent is None else parent.tokens),
        parent=None if parent is None else parent.digest,
    )
    return CacheCard(replace(card.manifest, lineage=[*lineage, hop]), card.tensors)


def _message_ends(
    tokenizer: PreTrainedTokenizerBase | None, source: Any, ids: TokenIds
) -> list[int] | None:
    """After how many ids each message but the last ends; those that the template writes otherwise
    once others follow are left out. None where the source is no messages."""
    sequence = isinstance(source, Sequence) and not isinstance(source, str) and len(source) > 0
    if tokenizer is None or not sequence or not isinstance(source[0], Mapping):
        return None
    words, messages = literal(tokenizer), cast(Sequence[Message], source)
    found = []
    for count in range(1, len(messages)):
        own = words.ids(words.render(messages[:count]))
        if len(own) < len(ids) and np.array_equal(own, ids[: len(own)]):
            found.append(len(own))
    return found
