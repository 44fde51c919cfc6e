"""Let a model read token ids, and take down its state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from ...card.digest import TokenIds
from ...card.errors import CaptureError
from ...scoring import Scorer
from ..cache.complete import complete, forward
from ..cache.compressed import compresses, grown
from ..cache.layers import attention_layers, empty_cache
from ..cache.observe import observe
from ..cache.states import take_states
from ..model.text_only import forget_positions
from ..text.tokens import Ids, as_ids, require_length, require_vocabulary
from .probe import Watch, can_watch_reading, watched
from .state import State, state_of


def read(model: PreTrainedModel, token_ids: Ids, scorers: Sequence[Scorer] = ()) -> State:
    """Prefill ``token_ids``, asking ``scorers`` on the way where the model can be watched.

    Raises `CaptureError` or `PromptError`.
    """
    ids = as_ids(token_ids)
    require_context(model, ids)
    forget_positions(model)
    cache, states = empty_cache(model), observe(model).states
    now = len(ids) - bool(states)  # a snapshot is taken before the last token, see `finish`
    asked = [scorer for scorer in scorers if len(scorer.probes(len(ids))) and not scorer.rereads]
    watch = Watch(model, asked if can_watch_reading(model) else ())
    if not states:
        _remember_one_more(model, cache, len(ids))
    if now:
        with watched(model, watch) if watch.scorers else nullcontext():
            forward(model, cache, ids[:now])
    state = finish(model, cache, ids)
    seen = {scorer: list(layers.values()) for scorer, layers in watch.scores.items()}
    if states:  # nobody has looked at the last token, which counts as the one before it
        for scorer, scores in seen.items():
            seen[scorer] = [torch.cat([score, score[:, -1:]], 1) for score in scores]
    whole = {scorer: scores for scorer, scores in seen.items() if len(scores) == len(state.cached)}
    return replace(state, scores=whole)


def read_to(model: PreTrainedModel, ids: TokenIds, ends: Sequence[int]) -> Iterator[State]:
    """The state after each of ``ends``, as ``model`` reads ``ids`` to them. Raises as `read`.

    A state is of the same memory as the cache, which the model reads on into: use it at once.
    """
    require_context(model, ids)
    forget_positions(model)
    cache = empty_cache(model)
    if not observe(model).states:
        _remember_one_more(model, cache, len(ids))
    for end in ends:
        yield finish(model, cache, ids[:end])


def finish(model: PreTrainedModel, cache: Cache, ids: TokenIds) -> State:
    """The state of ``ids``, once ``model`` has read those that ``cache`` lacks.

    Where the model keeps states, the cache must lack the last one at least: a snapshot is taken
    before it, since no state can be taken back to it. Raises as `state_of`.
    """
    states, snapshot, final = observe(model).states, list[torch.Tensor](), list[torch.Tensor]()
    if states:
        complete(model, cache, ids[:-1])
        if len(ids) > 1:
            snapshot = take_states(cache, states)
        _remember_one_more(model, cache, len(ids))
    complete(model, cache, ids)
    if states:
        final = take_states(cache, states)
        # A state of no tokens is not used; it has its place in the card all the same.
        snapshot = snapshot or [torch.zeros_like(tensor) for tensor in final]
    state = state_of(model, attention_layers(cache), 0, ids, None, len(ids))
    return replace(state, snapshot=snapshot, final=final)


def require_context(model: PreTrainedModel, ids: TokenIds) -> None:
    """Raise `CaptureError` or `PromptError` for a context that no model can read."""
    if len(ids) == 0:
        raise CaptureError("the context is empty; expected at least one token.")
    require_vocabulary(model, ids, "context")
    require_length(model, len(ids))


def _remember_one_more(model: PreTrainedModel, cache: Cache, tokens: int) -> None:
    """A full window would forget the token that an exact hit needs, see `inject`."""
    windows = [layer.window for layer in observe(model).layers if layer.window]
    if windows and tokens >= min(windows):
        layers: list[Any] = cache.layers
        cache.layers = [grown(layer) if compresses(layer) else layer for layer in layers]
        cache.activate_past_recording()  # type: ignore[no-untyped-call]
