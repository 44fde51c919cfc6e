"""How much composing loses with this model: tried once, on a part of its first composition.

Some models look at their first token so much that a part is worth nothing behind another prefix.
The trial takes a piece of a card's text, and reads it behind the first token of the card. It puts
the piece behind the receiver's prompt, and compares what the model expects of the tokens behind the
piece: with the piece read in its place, with the piece composed, and without any piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...card import Span
from ...card.digest import TokenIds
from ...card.errors import UnsupportedModelError
from ...codecs import Raw
from ..cache.observe import observe
from ..capture.capture import capture
from .composition import Composition
from .layout import Layout, Placed
from .place import place
from .repairs import First

_BEFORE, _MOST, _LEAST = 16, 192, 96  # tokens; two thirds of a piece are composed
_SHARE = 0.5  # of what a piece is worth may be lost
_WORTH = 0.3  # nats per token; what is worth less tells nothing


@dataclass(frozen=True)
class Trial:
    """KL in nats per token against reading the piece: ``worth`` of no piece, ``lost`` by composing
    it."""

    worth: float
    lost: float


_tried: WeakKeyDictionary[nn.Module, Trial] = WeakKeyDictionary()


def expected_loss(model: PreTrainedModel, layout: Layout) -> float | None:
    """What a composed piece of this model has lost in its trial, in nats per token, KL.

    None if there was no trial yet, since no part was long enough: 96 tokens that stood behind
    something else. A trial costs reading some 700 tokens. One that a model object has passed is its
    last. One that it has failed says something of this text, so the next text is tried anew.

    Raises `UnsupportedModelError` where more than half of what the piece is worth was lost.
    """
    if model not in _tried:
        windows = [layer.window for layer in observe(model).layers if layer.window]
        most = min([_MOST, *(window // 2 for window in windows)])
        long = (one for one in layout.spans if one.at >= max(layout.exact, 1))
        piece = next((one for one in long if min(len(one.span), most) >= _LEAST), None)
        if piece is None:
            return None
        eager = torch.compiler.set_stance("force_eager")
        with torch.inference_mode(False), torch.no_grad(), eager:
            trial = _try(model, layout.ids[: piece.at][:_BEFORE], piece, most)
        if trial.worth > _WORTH and not trial.lost <= _SHARE * trial.worth:
            raise UnsupportedModelError(
                f"{type(model).__name__} loses {trial.lost:.2f} of the {trial.worth:.2f} nats per "
                "token that a part of a card is worth when it stands behind another prompt. "
                "Capture parts behind a prompt, or give the text."
            )
        _tried[model] = trial
    return _tried[model].lost


def _try(model: PreTrainedModel, before: TokenIds, placed: Placed, most: int) -> Trial:
    ids = placed.span.token_ids[:most]
    piece, coming = np.split(ids, [len(ids) * 2 // 3])
    # As in its card: the first token of a text gets attention as no other one does.
    first = placed.span.card.token_ids[: min(1, placed.span.start)]
    card = capture(model, None, np.concatenate([first, piece]), codec=Raw())
    layout = Layout.of(model, None, [before, Span(card, len(first)), coming])
    composition = Composition(model, layout, *place(model, None, layout))
    First().repair(composition)
    known = composition.layout.cached
    cache = composition.state.cache()
    tokens, at = _tensor(model, coming), torch.arange(known, known + len(coming))
    composed = model(
        input_ids=tokens, position_ids=at[None].to(model.device), past_key_values=cache
    ).logits[0]
    read, alone = (
        model(input_ids=_tensor(model, np.concatenate([*of, coming])), use_cache=False).logits[0]
        for of in ([before, piece], [before])
    )
    expected = read[-len(coming) :].float().log_softmax(-1)
    lost, worth = (
        float((expected.exp() * (expected - found.float().log_softmax(-1))).sum(-1).mean())
        for found in (composed, alone[-len(coming) :])
    )
    return Trial(worth, lost)


def _tensor(model: PreTrainedModel, ids: TokenIds) -> Tensor:
    return torch.tensor(ids, dtype=torch.long, device=model.device)[None]
