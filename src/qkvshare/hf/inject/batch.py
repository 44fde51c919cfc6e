"""Several agents at once: each card in a row of its own, for one call of ``model.generate``.

Cards and new tokens have different lengths. Padding stands before the shorter ones, where the
attention mask hides it:

    padding | card | padding | new tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from ...card import CacheCard
from ...card.engine import Inputs
from ...card.errors import PromptError, UnsupportedModelError
from ..cache.batch_cache import BatchCache
from ..cache.card_cache import GuardedCache, Use
from ..cache.complete import forward
from ..cache.layers import empty_cache, growing_layers
from ..cache.observe import observe
from ..model.config import innermost, text_config
from ..model.identity import identify
from ..text.tokens import Ids, as_ids
from .inject import inject

# Error of logits beside padding, against that of one text that is read in two parts: other shapes
# round in other ways. Where padding moves positions the error is much larger.
_TIMES, _BESIDES = 8, 1e-3

_padded: WeakKeyDictionary[nn.Module, tuple[float, float]] = WeakKeyDictionary()


def batch_inputs(
    cards: Sequence[CacheCard],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    new: Sequence[str | Ids] = (),
) -> Inputs:
    """Arguments of one ``model.generate`` that goes on from several cards.

    Args:
        cards: all of ``model``. The same card may be there several times.
        model: with full attention in all layers.
        tokenizer: as for `CacheCard.inputs`.
        new: what follows each card, text or ids.

    Returns:
        ``input_ids`` and ``attention_mask`` ``[cards, tokens]``, and the cache. Row ``i`` has the
        tokens of card ``i`` and of ``new[i]``, and padding. What ``generate`` adds begins at
        column ``input_ids.shape[1]`` of every row.

    Raises:
        PromptError: there are no cards, or not one ``new`` for each.
        UnsupportedModelError: a layer has no full attention, or the model computes something else
            beside padding.
        CardError, CodecError, IdentityError: as `CacheCard.inputs`.
    """
    if not cards or len(cards) != len(new):
        raise PromptError(
            f"there are {len(cards)} cards and {len(new)} texts; expected at least one card, and "
            "one text for each."
        )
    _require_full(model)
    _require_padding(model)
    rows = [inject(card, model, tokenizer, one) for card, one in zip(cards, new, strict=True)]
    caches = [row["past_key_values"] for row in rows]
    arguments = stack(model, caches, [row["input_ids"][0] for row in rows])
    cache, watched = cast(GuardedCache, arguments["past_key_values"]), ref(model)

    def check_model() -> None:
        # By a weak reference, since the cache must not keep the model in memory.
        if (now := watched()) is not None:
            cards[0].manifest.identity.require(identify(now))

    given = arguments["input_ids"].shape[1]
    cache.use = Use(ref(innermost(model)), cache.get_seq_length(), given, False, check_model)
    return arguments


def stack(model: PreTrainedModel, caches: Sequence[DynamicCache], ids: Sequence[Tensor]) -> Inputs:
    """Rows of one cache, each with the first tokens of its ``ids [tokens]``."""
    observed = observe(model)
    lengths = [cache.get_seq_length() for cache in caches]
    known = max(lengths)
    width = known + max(len(row) - length for row, length in zip(ids, lengths, strict=True))
    pad = getattr(getattr(model, "generation_config", None), "pad_token_id", None)
    table = torch.full((len(ids), width), pad if isinstance(pad, int) else 0, device=model.device)
    mask = torch.zeros_like(table)
    for at, (row, length) in enumerate(zip(ids, lengths, strict=True)):
        for end, part in ((known, row[:length]), (width, row[length:])):
            table[at, end - len(part) : end] = part
            mask[at, end - len(part) : end] = 1
    # Memory made in inference mode could not be written outside of it.
    with torch.inference_mode(False), torch.no_grad():
        rows = [
            cache.began_as(0) if isinstance(cache, GuardedCache) else (None, 0) for cache in caches
        ]
        cache = BatchCache(model, rows, known)
        cache.layers = growing_layers(observed.empty, observed.numbers)
        for number in observed.numbers if known else []:
            parts = [cast(DynamicLayer, one.layers[number]) for one in caches]
            keys, values = (
                _aligned([cast(Tensor, getattr(part, name)) for part in parts], lengths)
                for name in ("keys", "values")
            )
            cast(Any, cache.layers[number]).update(keys, values)
    return {
        "input_ids": table,
        "attention_mask": mask,
        "past_key_values": cache,
        "use_cache": True,
    }


def _aligned(parts: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    """Tensors ``[1, kv_heads, length, dim]`` below each other, with zeros before them. Of a cache
    without tokens there is none, whatever it has."""
    most = max(lengths)
    longest = parts[lengths.index(most)]
    out = longest.new_zeros(len(parts), longest.shape[1], most, longest.shape[3])
    for row, part, length in zip(out, parts, lengths, strict=True):
        if length:
            row[:, most - length :] = part[0]
    return out


def _require_full(model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` unless all layers keep full attention, and nothing else."""
    observed = observe(model)
    kinds = {layer.kind for layer in observed.layers} | {state.kind for state in observed.states}
    if kinds != {"full"}:
        raise UnsupportedModelError(
            f"the layers of {type(model).__name__} keep {', '.join(sorted(kinds))}; a batch of "
            "cards is for models with full attention in all layers. Call generate for each card."
        )


def _require_padding(model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` where padding changes what a row computes.

    Tried once for each model object, on two texts of a few tokens.
    """
    if model not in _padded:
        size = text_config(model).vocab_size
        texts = [[at % size for at in range(first, end)] for first, end in ((5, 17), (11, 18))]
        with torch.inference_mode(False), torch.no_grad():
            _padded[model] = _try_padding(model, texts, known=(9, 5))
    usual, found = _padded[model]
    if not found <= _TIMES * usual + _BESIDES:
        raise UnsupportedModelError(
            f"{type(model).__name__} computes something else beside padding: logits differ by "
            f"{found:.2g}, and by {usual:.2g} without it. A batch of cards would give other text. "
            "Call generate for each card."
        )


def _try_padding(
    model: PreTrainedModel, texts: list[list[int]], known: Sequence[int]
) -> tuple[float, float]:
    """Errors of logits behind the first ``known`` tokens: row by row, and as one batch."""
    ids = [torch.tensor(text, device=model.device) for text in texts]
    whole = torch.cat([_next(model, input_ids=row[None]) for row in ids])

    def caches() -> list[DynamicCache]:
        made = [empty_cache(model) for _ in texts]
        for cache, text, count in zip(made, texts, known, strict=True):
            forward(model, cache, as_ids(text[:count]))
        return made

    pairs = zip(caches(), ids, strict=True)
    rows = torch.cat([_next(model, **stack(model, [cache], [row])) for cache, row in pairs])
    batch = _next(model, **stack(model, caches(), ids))
    return _error(rows, whole), _error(batch, whole)


def _next(model: PreTrainedModel, **arguments: Any) -> Tensor:
    """Logits ``[rows, vocabulary]`` of the next token, as ``generate`` computes them."""
    found = cast(Any, model).generate(
        max_new_tokens=1, do_sample=False, num_beams=1, return_dict_in_generate=True,
        output_logits=True, **arguments,
    )  # fmt: skip
    return cast(Tensor, found.logits[0].float())


def _error(found: Tensor, expected: Tensor) -> float:
    """The largest of the rows' errors, relative."""
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())
