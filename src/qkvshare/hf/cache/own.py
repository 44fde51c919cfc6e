"""A class of cache that a model brings along, and takes no other one.

Such a class keeps one state a layer in a list of its own, beside the layers of transformers. Here
the list is a view of recurrent states in those layers, so a card finds them where it finds those of
any other model. MiniMax has such a class.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..model.config import innermost


def own_class(model: PreTrainedModel, base: Any = DynamicCache) -> Any:
    """``base``, a class of ``DynamicCache``, as one that ``model`` takes.

    That is ``base`` itself, unless the module of the model has a class with one list beside the
    layers. A class that keeps anything else is not made: reading then shows whether it is needed.
    """
    home = sys.modules[type(innermost(model)).__module__]
    own: list[Any] = [
        kind
        for kind in vars(home).values()
        if isinstance(kind, type) and issubclass(kind, DynamicCache)
        if kind.__module__ == home.__name__
    ]
    return _joined(base, own[0]) if len(own) == 1 else base


class _States:
    """One state a layer: the first recurrent one of each of ``layers``, None where it has none."""

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, number: int) -> Tensor | None:
        states = getattr(self._layers[number], "recurrent_states", [None])
        state: Tensor | None = states[0]
        return state

    def __setitem__(self, number: int, state: Tensor) -> None:
        layer = self._layers[number]
        layer.update_recurrent_state(state)
        layer.has_previous_state[0] = True


@cache
def _joined(base: Any, kind: Any) -> Any:
    """A class that is ``base`` and ``kind``, whose list is a view of its layers."""
    try:
        added = {name: at for name, at in vars(kind()).items() if name not in vars(DynamicCache())}
    except TypeError:  # it cannot be made without being told something
        return base
    if [*added.values()] != [[]]:
        return base
    (name,) = added
    # An empty list that is put there is none: the layers know what they have.
    view = property(lambda self: _States(self.layers), lambda self, value: None)
    bases = (kind,) if base is DynamicCache else (base, kind)
    # Made as ``base`` is, with the layers that a configuration asks for, which ``kind`` has not.
    return type(kind.__name__, bases, {name: view, "__init__": base.__init__})
