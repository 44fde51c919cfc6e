"""Score a state: how much later queries will look at each token."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ...card.digest import TokenIds
from ...card.errors import UnsupportedModelError
from ...scoring import AttentionProbe, Scorer, Visibility
from ..cache.observe import positions
from .probe import Watch, choose_probes, watched
from .state import State


def salience(state: State, scorer: Scorer, start: int = 0) -> list[Tensor]:
    """Salience of each layer's cached tokens from ``start`` on, ``[kv_heads, tokens]``, float32.

    Its mean over all cached tokens is 1.

    What ``scorer`` said while the context was read; where it was not asked, probes are read behind
    the context. Raises `UnsupportedModelError` for models whose attention cannot be watched.
    """
    seen = state.scores.get(scorer)
    if seen is None and len(scorer.probes(len(state.ids))) == 0:
        seen = [scorer.score(_unlooked(cached.keys)) for cached in state.cached]
    elif seen is None:
        seen = look_back(state, scorer, state.ids if scorer.rereads else choose_probes(state.ids))
    if any(one.shape[0] != at.keys.shape[0] for one, at in zip(seen, state.cached, strict=True)):
        raise UnsupportedModelError(
            f"the attention of {type(state.model).__name__} does not get keys as its cache has "
            "them, so its tokens cannot be scored. Choose an allocator that needs no scorer, such "
            "as 'lagrangian:share=0'."
        )
    out = []
    for score, cached in zip(seen, state.cached, strict=True):
        # A token that only a roll back can need has left the window: nobody looks at it.
        missing = cached.keys.shape[1] - score.shape[1]
        fitting = torch.nn.functional.pad(score, (missing, 0))
        out.append(fitting / fitting.mean().clamp(min=1e-30))
    return [score[:, max(0, start - state.first(at)) :] for at, score in enumerate(out)]


def _unlooked(keys: Tensor) -> AttentionProbe:
    """A layer that no query looks at."""
    kv_heads, tokens, dim = keys.shape
    nobody = torch.zeros(0, tokens, dtype=torch.bool, device=keys.device)
    queries = keys.new_zeros(kv_heads, 1, 0, dim)
    return AttentionProbe(queries, keys, Visibility(nobody), 1.0, tokens, lambda x, _: x)


def look_back(state: State, scorer: Scorer, probes: TokenIds) -> list[Tensor]:
    """What ``scorer`` says when ``probes`` are read behind the context, a score a layer."""
    model = state.model
    tokens = torch.from_numpy(probes).long()[None].to(model.device)
    watch = Watch(model, [scorer], behind=len(probes))
    with watched(model, watch), torch.no_grad():
        decoder = cast(Any, model).get_decoder()
        more = positions(model, len(state.ids), len(probes))
        decoder(input_ids=tokens, past_key_values=state.cache(), use_cache=True, **more)
    found = watch.scores.get(scorer, {})
    if len(found) != len(state.cached):
        raise UnsupportedModelError(
            f"{type(model).__name__} lets {len(found)} of its {len(state.cached)} attention layers "
            "be observed, so its tokens cannot be scored. Choose an allocator that needs no "
            "scorer, such as 'lagrangian:share=0'."
        )
    return list(found.values())
