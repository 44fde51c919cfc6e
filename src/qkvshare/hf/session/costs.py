"""Go on from a card, or read its text again: whichever gives the first token sooner here.

A card is injected in a time that grows with its tokens, text is read in one that grows faster, and
a slow link is in favour of text. How fast this machine is with this model is measured once (some
seconds) and kept in the cache folder.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import torch

from ...card import CacheCard
from ...card.digest import digest_json
from ...codecs import Codec, Stepped, from_record
from ..cache.counting import as_argument
from ..cache.layers import empty_cache
from ..capture.capture import make_card
from ..capture.reading import read
from ..inject.inject import inject
from ..model.config import text_config
from ..model.gguf import cache_folder
from ..model.identity import identify

_LONG, _SHORT, _NEW, _ROUNDS = 240, 60, 8, 3  # tokens, and times


class Costs(msgspec.Struct, frozen=True):
    """Milliseconds on one machine, with one model and one codec.

    Attributes:
        step: a forward pass over a few tokens, which reads all weights.
        billion: 10^9 multiplications and additions of a long one.
        inject: of a card with no tokens; `token` more for each that it has.
    """

    step: float
    billion: float
    inject: float
    token: float

    def reading(self, model: Any, tokens: int, known: int = 0) -> float:
        """Of ``tokens`` behind ``known`` ones in the cache."""
        return max(self.step, self.billion * operations(model, tokens, known) / 1e9)


@dataclass(frozen=True)
class Choice:
    """What is sooner, ``inject`` or ``prefill``, and why: expected milliseconds of each."""

    policy: Literal["inject", "prefill"]
    inject: float
    prefill: float

    def __str__(self) -> str:
        return (
            f"{self.policy}: {self.inject:,.0f} ms expected from the card, {self.prefill:,.0f} ms "
            "by reading its text again"
        )


def choose(model: Any, card: CacheCard, new_tokens: int, link: float | None = None) -> Choice:
    """For ``new_tokens`` after ``card``, which must first cross a ``link`` in Mbit/s, if given.

    Measures once, if it has to. Raises `IdentityError`, and as `inject`.
    """
    card.manifest.identity.require(identify(model))
    costs = measured(model, from_record(card.manifest.segments[0].codec))
    from_card = costs.inject + costs.token * card.tokens
    from_card += costs.reading(model, new_tokens, card.tokens)
    from_text = costs.reading(model, card.tokens + new_tokens)
    if link is not None:
        from_card += 8 * card.nbytes / (1e3 * link)
        from_text += 8 * card.token_ids.nbytes / (1e3 * link)
    return Choice("inject" if from_card <= from_text else "prefill", from_card, from_text)


def operations(model: Any, tokens: int, known: int = 0) -> int:
    """Multiplications and additions of a forward pass with one row of logits."""
    config = text_config(model)
    heads = getattr(config, "num_attention_heads", 0)  # none in a model without attention
    dim = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    table = model.get_input_embeddings().weight.numel()
    weights: int = sum(part.numel() for part in model.parameters()) - table
    # Keys and values, a multiplication and an addition each, of all that a token sees.
    seen = tokens * known + tokens * tokens // 2
    attention: int = 4 * config.num_hidden_layers * heads * dim * seen
    return 2 * weights * tokens + attention


def measured(model: Any, codec: Codec) -> Costs:
    """From the cache folder, or now."""
    identity = identify(model)
    here = [
        *(identity.weights, identity.dtype, str(model.device), model.config._attn_implementation),
        *(platform.node(), platform.processor(), os.cpu_count(), torch.get_num_threads()),
        *(codec.name, str(vars(codec).get("profile"))),
    ]
    path = cache_folder() / "costs" / f"{digest_json(here)[:32]}.json"
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=Costs)
    costs = _measure(model, codec)
    with suppress(OSError):  # measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(msgspec.json.encode(costs))
        part.replace(path)
    return costs


def _measure(model: Any, codec: Codec) -> Costs:
    vocabulary = int(text_config(model).vocab_size)
    ids = [1 + number % (vocabulary - 1) for number in range(_LONG + _NEW)]
    new = ids[_LONG:]

    def forward(tokens: list[int]) -> None:
        given = torch.tensor([tokens], device=model.device)
        with torch.no_grad():
            cache = as_argument(model, empty_cache(model))
            logits = model(given, logits_to_keep=1, **cache).logits
        logits.argmax().item()

    identity, times = identify(model), []
    # As for a new card: a record has the step of its own.
    plain = codec.at(None) if isinstance(codec, Stepped) else codec
    for count in (_SHORT, _LONG):
        state = read(model, ids[:count])
        card = make_card(state, identity, plain)
        times.append(_median(lambda card=card: inject(card, model, new=new)))  # type: ignore[misc]
    token = max(0.0, (times[1] - times[0]) / (_LONG - _SHORT))
    step, long = _median(lambda: forward(new)), _median(lambda: forward(ids[:_LONG]))
    billion = long * 1e9 / operations(model, _LONG)
    return Costs(step, billion, max(0.0, times[0] - token * _SHORT), token)


def _median(work: Callable[[], object]) -> float:
    """Milliseconds; the first time is not counted."""
    times = []
    for _ in range(1 + _ROUNDS):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])
