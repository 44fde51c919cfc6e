"""Whether a model goes on from a card as it does from the text, and what a card of it holds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from ..card import CacheCard, Layer, StateTensor
from ..card.digest import TokenIds
from ..card.errors import QKVShareError
from ..codecs import CODECS, Raw
from .cache.card_cache import CardCache
from .cache.counting import cache_in
from .capture.capture import capture
from .capture.reading import read
from .inject.inject import inject


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Attributes:
        layers: geometry of the layers that a card holds.
        states: the recurrent and convolution states that it holds.
        differs: the first generated token that is another after a lossless hand-off; None where
            all are the same.
        layer: the first layer whose keys or values are others then; None where none is.
        bits: for each codec what a card of the context takes, in bits per value of the whole file,
            or why there is none.
    """

    layers: list[Layer]
    states: list[StateTensor]
    differs: int | None
    layer: int | None
    bits: dict[str, float | str]


def check(model: PreTrainedModel, ids: TokenIds, new: TokenIds, tokens: int = 32) -> Check:
    """Hand ``ids`` over in a file, go on with ``new``, and compare with going on from the text.

    Args:
        model: any causal language model of ``transformers``.
        ids: the context, ``[context]``.
        new: what follows it, ``[new]``, at least one token.
        tokens: how many tokens are generated, greedily, and compared.

    Raises:
        UnsupportedModelError: a card cannot carry the model's state; the message says why.
        PromptError: the model cannot read these ids.
    """
    whole = torch.from_numpy(np.concatenate([ids, new])).long()[None].to(model.device)
    given: dict[str, Any] = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    expected = _say(model, given, tokens)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "check.card"
        capture(model, None, ids, codec=Raw()).save(path)
        card = CacheCard.load(path)
        found = _say(model, {**inject(card, model, new=new)}, tokens)
        layer = None if torch.equal(found, expected) else _first_layer(model, card, new)
    differs = (found != expected).nonzero()
    return Check(
        layers=card.manifest.layers,
        states=card.manifest.states,
        differs=int(differs[0]) if len(differs) else None,
        layer=layer,
        bits={name: _bits(model, ids, name) for name in CODECS},
    )


def cache_bytes(layers: list[Layer], dtype: torch.dtype) -> int:
    """Bytes of one more token in the model's own cache, sliding layers included."""
    return sum(at.kv_heads * (at.head_dim + at.v_head_dim) for at in layers) * dtype.itemsize


def _say(model: Any, given: dict[str, Any], tokens: int) -> torch.Tensor:
    """Generated ids; no end of text ends them, so that all are compared."""
    out = model.generate(
        **given, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, num_beams=1
    )
    return cast(torch.Tensor, out[0, given["input_ids"].shape[1] :].cpu())


def _first_layer(model: Any, card: CacheCard, new: TokenIds) -> int | None:
    """Where the keys or values after ``new`` first differ."""
    inputs = inject(card, model, new=new, new_only=True)
    with torch.no_grad():
        model(**inputs)
    state = read(model, np.concatenate([card.token_ids, new]))
    handed_over = cast(CardCache, cache_in(inputs)).of_card
    for number, (one, other) in enumerate(zip(handed_over, state.cached, strict=True)):
        for found, expected in ((one.keys[0], other.keys), (one.values[0], other.values)):
            both = min(found.shape[1], expected.shape[1])  # windows may have another token
            if not torch.allclose(found[:, -both:], expected[:, -both:], rtol=1e-2, atol=1e-2):
                return number
    return None


def _bits(model: PreTrainedModel, ids: TokenIds, name: str) -> float | str:
    """Of a card with this codec's own settings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when the model is used
            card = capture(model, None, ids, codec=CODECS[name]())
            return card.bits_per_value if card.manifest.layers else "states alone"
    except QKVShareError as error:
        return str(error)
