"""Whether parts of a context can be exchanged for this model at all: tried once for each one."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...card.errors import QKVShareError, UnsupportedModelError
from ...codecs import LayerKV
from ..cache.observe import observe
from ..capture.reading import read
from ..model.config import text_config
from ..model.rope import Rope
from ..model.text_only import forget_positions
from .rows import compute_rows

_BEFORE, _PART = 3, 5  # tokens; short, so that no sliding window forgets one
# Relative error of keys and values that were computed behind another prefix, against those of the
# whole text. Roundings of many layers in bfloat16 add up; a mask or a position that the model does
# not heed gives errors near 1.
_TOLERANCE = {torch.float32: 1e-3}
_HALF = 0.2

_tried: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def require_composable(model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` where keys cannot be taken to other positions, or chosen tokens
    not be computed anew, or a layer keeps something else beside keys and values.

    The first time a model object is asked about, it reads a few tokens.
    """
    if model not in _tried:
        eager = torch.compiler.set_stance("force_eager")
        with torch.inference_mode(False), torch.no_grad(), eager:
            _tried[model] = _try(model)
    if (why := _tried[model]) is not None:
        raise UnsupportedModelError(
            f"{type(model).__name__} {why}; so cards cannot be composed. Give it the text."
        )


def _try(model: PreTrainedModel) -> str | None:
    """Why not, if so."""
    observed = observe(model)
    kinds = {layer.kind for layer in observed.layers} | {state.kind for state in observed.states}
    if not kinds <= {"full", "sliding"}:
        return f"keeps {', '.join(sorted(kinds - {'full', 'sliding'}))}"
    if any(layer.placed for layer in observed.layers):
        return "keeps keys whose positions cannot be taken out of them"
    forget_positions(model)
    vocabulary = text_config(model).vocab_size
    ids = (np.arange(_BEFORE + _PART) * 7 % vocabulary).astype(np.int32)
    try:
        whole, part = read(model, ids), read(model, ids[_BEFORE:])
        rope, buffers = Rope(model, observed.numbers), list[LayerKV]()
        for number, layer in enumerate(whole.cached):
            if layer.keys.shape[1] < len(ids):
                return f"keeps a window of fewer than {len(ids)} tokens in layer {number}"
            keys, values = torch.zeros_like(layer.keys), torch.zeros_like(layer.values)
            plain = part.layer(number, 0, pre_rope=True)
            moved = rope.rotate(number, plain.keys, range(_BEFORE, len(ids)))
            keys[:, _BEFORE:], values[:, _BEFORE:] = moved.to(keys.dtype), plain.values
            buffers.append(LayerKV(keys, values))
        keys, expected = buffers[0].keys[:, _BEFORE:], whole.cached[0].keys[:, _BEFORE:]
        if not _error(keys, expected) <= _limit(model):
            return "has keys that depend on more than token and position"
        compute_rows(model, ids, buffers, torch.arange(len(ids)))
    except QKVShareError:
        raise
    except Exception as refusal:  # whatever a model says that takes no masks or positions
        return f"cannot be told masks and positions ({type(refusal).__name__}: {refusal})"
    worst = max(
        max(_error(found.keys, at.keys), _error(found.values, at.values))
        for found, at in zip(buffers, whole.cached, strict=True)
    )
    if worst <= _limit(model):
        return None
    return f"does not heed masks and positions that it is told (relative error {worst:.2g})"


def _limit(model: PreTrainedModel) -> float:
    return _TOLERANCE.get(model.dtype, _HALF)


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).float().norm() / expected.float().norm().clamp(min=1e-30))
