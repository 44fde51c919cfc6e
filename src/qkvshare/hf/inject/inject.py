"""Inject: from a card to arguments for ``model.generate``."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast, get_args
from weakref import ref

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from ...card import CacheCard, Run
from ...card.digest import TokenIds
from ...card.engine import Inputs, KVFormat
from ...card.errors import CodecError, PromptError, UnsupportedModelError
from ...codecs import Shape, dtype_of, find_codec, from_record
from ..cache.card_cache import CardCache, GuardedCache, Use
from ..cache.coded import CodedLayer, CodedRun, Scratch
from ..cache.complete import complete, forward
from ..cache.counting import as_argument
from ..cache.growing import HalfLayer
from ..cache.observe import positions
from ..cache.own import own_class
from ..model.config import innermost
from ..model.identity import identify
from ..model.text_only import forget_positions, require_text
from ..text.tokens import Ids, as_ids, following, require_length, require_vocabulary
from .bound import BoundCard
from .fill import fill, go_on

# From this length on, new ids that begin with the whole card are taken for a mistake.
_SURELY_REPEATED = 16


def inject(
    card: CacheCard,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    new: str | Ids = "",
    *,
    prompt_ids: Ids | None = None,
    new_only: bool = False,
    kv_format: KVFormat = "model",
    cached: Cache | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Inputs:
    """`CacheCard.inputs`: the card's state in a cache of ``model``, and the tokens after it."""
    if kv_format not in (formats := get_args(KVFormat)):
        raise PromptError(f"kv_format is {kv_format!r}; expected one of {', '.join(formats)}.")
    card.require_fresh()
    bound = BoundCard(card, model, tokenizer)
    if kv_format != "model" and (not card.manifest.layers or bound.shares_layers):
        what = "something else beside" if card.manifest.layers else "no"
        raise UnsupportedModelError(
            f"kv_format={kv_format!r} is not for {type(model).__name__}, whose layers keep "
            f"{what} keys and values. Use kv_format='model'."
        )
    prompt = _prompt(bound, tokenizer, new, prompt_ids)
    # Memory made in inference mode could not be written outside of it.
    with torch.inference_mode(False):
        cache = bound.cache(bound.decodes(len(prompt) - 1))
        if kv_format == "bfloat16":
            _keep_half(bound, cache)
        if kv_format == "codes":
            _keep_codes(bound, cache, cancelled)
        if not all(isinstance(layer, CodedLayer) for layer in cache.of_card):
            fill(bound, cache, _usable(cached, cache), cancelled)
    if bound.stepwise:
        complete(model, cache, prompt[:-1], cancelled)
    return arguments_of(model, card, prompt, cache, new_only)


def _keep_half(bound: BoundCard, cache: CardCache) -> None:
    """Put `HalfLayer` in place of the empty full layers of ``cache``."""
    if bound.model.dtype != torch.float32:
        raise UnsupportedModelError(
            f"the model computes in {bound.model.dtype}, and so is its cache; 'bfloat16' is for "
            "models in torch.float32. Use kv_format='model'."
        )
    for run in bound.card.manifest.runs:
        if find_codec(run.codec.name).lossless:
            raise CodecError(
                f"a card of the codec {run.codec.name!r} keeps every bit; 'bfloat16' would round "
                "them to 16. Use kv_format='model', or capture with another codec."
            )
    for number, layer in enumerate(bound.card.manifest.layers):
        if layer.window is None:
            cache.layers[cache.numbers[number]] = HalfLayer(bound.config)


def _keep_codes(bound: BoundCard, cache: CardCache, cancelled: Callable[[], bool]) -> None:
    """Put `CodedLayer` in place of the empty full layers of ``cache``; all codes are checked."""
    card = bound.card
    for run in card.manifest.runs:
        if not find_codec(run.codec.name).independent:
            raise CodecError(
                f"codes of {run.codec.name!r} cannot stay codes: a layer is decoded from those "
                "before it. Use kv_format='model', or capture with the codec 'packed'."
            )
    scratches = dict[torch.device, Scratch]()
    for number, layer in enumerate(card.manifest.layers):
        go_on(cancelled)
        if layer.window is None:
            device = bound.devices[number]
            scratch = scratches.setdefault(device, Scratch(dtype_of(card), device, bound.config))
            runs = [_coded(bound, run, number) for run in card.manifest.runs]
            coded = CodedLayer(number, runs, cache.decoded, scratch)
            cache.layers[cache.numbers[number]] = coded


def _coded(bound: BoundCard, run: Run, number: int) -> CodedRun:
    card = bound.card
    blob = card.blob(number, run.segment)
    blob = blob if run.spans is None else blob[run.spans[number]]
    shape = Shape.of(card.manifest.layers[number], run.held(number))
    codec = from_record(run.codec)
    codec.check([blob], [shape], dtype_of(card))  # now, not while the model reads it
    return CodedRun(codec, blob, run.start, shape, bound.rotation(run, number))


def prefill(
    card: CacheCard,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    new: str | Ids = "",
    *,
    prompt_ids: Ids | None = None,
    new_only: bool = False,
) -> Inputs:
    """What `inject` gives, made by reading the card's text again: at full precision, and later.

    Needs none of the card's encoded bytes. `costs.choose` says when it is sooner. Raises as
    `inject`.
    """
    card.require_fresh()
    bound = BoundCard(card, model, tokenizer)
    prompt = _prompt(bound, tokenizer, new, prompt_ids)
    kept = min(card.tokens, len(prompt) - 1)
    with torch.inference_mode(False), torch.no_grad():
        cache = own_class(model, GuardedCache)(model)
        if kept:
            forward(model, cache, card.token_ids[:kept])
    if bound.stepwise:
        complete(model, cache, prompt[:-1])
    return arguments_of(model, card, prompt, cache, new_only)


def _prompt(
    bound: BoundCard,
    tokenizer: PreTrainedTokenizerBase | None,
    new: str | Ids,
    prompt_ids: Ids | None,
) -> TokenIds:
    """The card's tokens and those to read after them. Raises `PromptError`."""
    card, model = bound.card, bound.model
    require_vocabulary(model, card.token_ids, "card")
    require_text(model, card.token_ids)
    forget_positions(model)
    if isinstance(new, str):
        ids = following(tokenizer, new) if new else np.empty(0, np.int32)
    else:
        ids = as_ids(new, "new")
    prompt = _whole(card, ids, prompt_ids)
    require_vocabulary(model, prompt[card.tokens :], "prompt")
    require_length(model, len(prompt))
    return prompt


def _whole(card: CacheCard, new: TokenIds, prompt_ids: Ids | None) -> TokenIds:
    context, known = card.token_ids, card.tokens
    if prompt_ids is not None:
        if len(new):
            raise PromptError("give new (what follows) or prompt_ids (all of it), not both.")
        prompt = as_ids(prompt_ids, "prompt_ids")
        same = prompt[:known] == context[: len(prompt)]
        if len(prompt) < known or not same.all():
            at = int(np.argmin(same)) if not same.all() else len(prompt)
            found = prompt[at] if at < len(prompt) else "its end"
            raise PromptError(
                f"the prompt does not continue the card: at token {at} it has {found}, the card "
                f"has {context[at]} (card of {known} tokens, prompt of {len(prompt)}). "
                "A cache is valid for its exact prefix only; capture this prompt instead."
            )
        return prompt
    if known >= _SURELY_REPEATED and np.array_equal(new[:known], context):
        raise PromptError(
            f"new repeats the card's {known} tokens, which would be read twice. Pass only what "
            "follows, or the whole prompt as prompt_ids=."
        )
    return np.concatenate([context, new])


def _usable(cached: Cache | None, cache: CardCache) -> CardCache | None:
    """``cached``, where it has what the first segments of a card would be decoded to."""
    if not isinstance(cached, CardCache) or cached.decoded < cached.card.tokens:
        return None
    card, length = cache.card, cached.get_seq_length()
    segments = cached.card.manifest.segments
    if segments != card.manifest.segments[: len(segments)]:
        return None
    # Layers of another kind hold numbers of another format.
    if [*map(type, cached.layers)] != [*map(type, cache.layers)]:
        return None
    if any(isinstance(layer, CodedLayer) for layer in cached.layers):
        return None
    if length < cached.card.tokens:  # it was reset
        return None
    layers = cast(list[DynamicLayer], cached.of_card)
    for layer, at in zip(layers, card.manifest.layers, strict=True):
        batch, _, tokens, _ = cast(Tensor, layer.keys).shape
        needed = 0 if at.window is None else max(0, cache.decoded - at.window + 1)
        if batch > 1 or length - tokens > needed:  # the window may have lost some of them
            return None
    return cached


def arguments_of(
    model: PreTrainedModel,
    card: CacheCard,
    prompt: TokenIds,
    cache: GuardedCache,
    new_only: bool,
) -> Inputs:
    """What `CacheCard.inputs` returns for a cache of ``card`` with ``prompt``'s first tokens."""
    kept, watched = cache.get_seq_length(), ref(model)
    given = prompt[kept:] if new_only else prompt

    def check_model() -> None:
        # By a weak reference, since the cache must not keep the model in memory.
        if (now := watched()) is not None:
            card.manifest.identity.require(identify(now))

    cache.use = Use(ref(innermost(model)), kept, len(given), new_only, check_model)
    arguments: Inputs = {
        "input_ids": torch.from_numpy(given.astype(np.int64))[None].to(model.device),
        "attention_mask": torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
        "use_cache": True,  # whatever the configuration says
        **as_argument(model, cache),  # type: ignore[typeddict-item]
    }
    if cache.states_alone and new_only:  # such a model takes a mask of what it reads
        arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])
    if new_only and (told := positions(model, kept, len(given))):
        arguments["position_ids"] = told["position_ids"]
    own = getattr(model, "generation_config", None)
    if not new_only and getattr(own, "cache_implementation", None):
        arguments["cache_implementation"] = None  # the card's cache is used
    return arguments
