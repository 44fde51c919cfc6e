"""A cache in a file, without loss: for users who only want to keep it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from ...card import CacheCard
from ...card.errors import CodecError
from ...codecs import Raw, from_record
from ..cache.complete import complete
from ..cache.counting import CountingCache
from ..cache.layers import numbered, place_layer
from ..cache.observe import observe
from ..cache.states import put_states, take_states
from ..text.tokens import Ids
from .capture import capture_cache
from .live import decode


class SavedCache(NamedTuple):
    """What `load_cache` returns.

    Attributes:
        cache: a ``DynamicCache`` of all ``ids``, which grows as any other.
        ids: int64 ``[1, tokens]`` on the model's device. For ``generate`` put new ids behind them.
    """

    cache: DynamicCache
    ids: Tensor


def save_cache(cache: Cache, ids: Ids, path: str | Path, model: PreTrainedModel) -> Path:
    """Write ``cache`` to a file that `load_cache` gives back bit for bit.

    The file is a card with the codec `Raw`: it is about as large as the cache, and `load_cache`
    refuses it for any other model. `capture_cache` makes a much smaller one.

    Args:
        cache: a ``DynamicCache`` of one sequence. Ids that it lacks, as the last one that
            ``generate`` sampled, are read first.
        ids: the token ids that it was made of, ``[tokens]`` or ``[1, tokens]``.
        path: the file, which is replaced as a whole.
        model: the model that made the cache.

    Returns:
        The path.

    Raises:
        CaptureError: the cache is not of these ids.
        CardWriteError: the file cannot be written.
        PromptError, UnsupportedModelError: as `capture_cache`.
    """
    # Any other cache of states alone cannot tell what it lacks, and is not read from anyway.
    if observe(model).layers or isinstance(cache, CountingCache):
        complete(model, cache, ids)
    return capture_cache(model, cache, ids, codec=Raw(), anew=True).save(path)


def load_cache(path: str | Path, model: PreTrainedModel) -> SavedCache:
    """Read what `save_cache` wrote.

    ::

        cache, ids = qkvshare.load_cache("agent.cache", model)
        new = tokenizer("And then?", return_tensors="pt").input_ids
        model.generate(torch.cat([ids, new], 1), past_key_values=cache)

    A model without attention takes the cache as ``cache_params=``.

    Raises:
        CardError: the file is missing or damaged.
        CodecError: the card is not lossless; use `CacheCard.load` and `CacheCard.inputs`.
        IdentityError: the cache belongs to another model.
    """
    card = CacheCard.load(path)
    for run in card.manifest.runs:
        if not from_record(run.codec).lossless:
            raise CodecError(
                f"{path} was encoded with {run.codec.name!r}, which loses something; expected what "
                "save_cache wrote. Use CacheCard.load(path).inputs(model, …)."
            )
    decoded, states = decode(model, card), card.manifest.states
    cache = deepcopy(observe(model).empty)
    complete(model, decoded, card.token_ids)
    for slot, layer in zip(numbered(cache, decoded.numbers), decoded.of_card, strict=True):
        place_layer(slot, layer.keys[0], layer.values[0], card.tokens)
    put_states(cache, states, take_states(decoded, states), card.tokens)
    if isinstance(cache, CountingCache):
        cache.stepwise = decoded.stepwise
    return SavedCache(cache, torch.tensor(card.token_ids, device=model.device).long()[None])
