"""The cache of a model without attention: what it has read, and what ``generate`` lets it read.

Keys and values are one for each token. States are one for all tokens, so a cache of states alone
cannot tell how many it has read, and ``generate`` reads the whole ids behind it, whatever it has.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property, wraps
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from ...card.engine import Inputs
from ...card.errors import PromptError
from ..model.config import innermost
from .indexer import repeat_index_keys
from .states import repeat_states


def states_alone(cache: Cache) -> bool:
    """Whether ``cache`` has layers, and none of them keeps keys and values."""
    keeping = any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)
    return len(cache.layers) > 0 and not keeping


def as_argument(model: PreTrainedModel, cache: Cache) -> dict[str, Cache]:
    """``cache`` under the name by which ``model`` and its ``generate`` take it: models without
    attention have another one."""
    takes = inspect.signature(model.forward).parameters
    other = states_alone(cache) and "past_key_values" not in takes
    return {"cache_params" if other else "past_key_values": cache}


def cache_in(arguments: Inputs) -> Cache:
    """The cache among the arguments that `inject` returns."""
    given: Mapping[str, Any] = arguments
    (found,) = (given[name] for name in ("past_key_values", "cache_params") if name in given)
    return cast(Cache, found)


class CountingCache(DynamicCache):
    """A ``DynamicCache`` that counts tokens where no layer of it does.

    The model asks for the states of its first layer once in each forward pass. That is one token,
    unless more than one are put into the layer afterwards. `look` holds that the count is right.

    Attributes:
        seq_len: tokens read; counted in a cache of states alone, see `put_states`.
        stepwise: see `Observed`; then ``generate`` lets the model read one token at a time.
    """

    seq_len = 0
    stepwise = False
    is_compileable = False  # ``generate`` would compile the model for it, and count wrong
    _model: ref[nn.Module] | None = None

    def __init__(self, model: PreTrainedModel) -> None:
        """An empty cache of ``model``."""
        # Not the next class: one of the model's own may take no configuration, see `own_class`.
        DynamicCache.__init__(self, config=model.config)
        self._model = ref(innermost(model))

    @cached_property
    def states_alone(self) -> bool:
        """See `states_alone`."""
        return states_alone(self)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """As ``DynamicCache.get_seq_length``; of a cache of states alone, too."""
        return self.seq_len if self.states_alone else super().get_seq_length(layer_idx)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """As ``DynamicCache.get_conv_state``: a forward pass begins with it."""
        self.seq_len += layer_idx == 0
        return super().get_conv_state(layer_idx, state_idx)

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        """As ``DynamicCache.has_previous_state``: in older releases of transformers a forward pass
        begins with it."""
        self.seq_len += layer_idx == 0
        return super().has_previous_state(layer_idx, state_idx)

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Tensor:
        """As ``DynamicCache.update_conv_state``. Raises `PromptError` as `read_at_once`."""
        if self.states_alone and layer_idx == 0:
            self.seq_len -= 1  # it was counted as one token
            self.read_at_once(conv_states.shape[-1])
            self.seq_len += conv_states.shape[-1]
        return super().update_conv_state(conv_states, layer_idx, *args, **kwargs)

    def read_at_once(self, count: int) -> None:
        """``count`` tokens are about to be read. A subclass may raise `PromptError`."""

    def require_whole(self, given: int) -> None:
        """Raise `PromptError` where ``given`` ids, all of a text, are no more than were read."""
        if given <= self.seq_len:
            raise PromptError(
                f"the cache has {self.seq_len} tokens, input_ids has {given}: nothing is left to "
                "read. Pass the whole ids; call card.inputs again for each call of generate."
            )

    def reset(self) -> None:
        """As ``DynamicCache.reset``."""
        super().reset()  # type: ignore[no-untyped-call]
        self.seq_len = 0

    @property
    def _is_user_defined(self) -> bool:
        return True

    @_is_user_defined.setter
    def _is_user_defined(self, value: bool) -> None:
        # generate says so of every cache that it was given, before anything is read.
        if self._model is not None and (model := self._model()) is not None:
            before_first_read(model, self)


def before_first_read(model: Any, cache: CountingCache, guesses: bool = False) -> None:
    """Prepare for what the next call of ``model.prepare_inputs_for_generation`` is given.

    Its ids have a row for each beam or sample, and each needs a copy of the states and of an
    indexer's keys; layers with keys and values see that for themselves. Assisted generation, which
    ``guesses``, reads the whole ids in its first forward, whatever the cache has, and so does all
    generation with states alone: those that it has are left out. All other kinds of generation cut
    the ids there.
    """
    prepare, mine = model.prepare_inputs_for_generation, ref(cache)

    @wraps(prepare)  # generate looks at its signature
    def cut(input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any) -> Any:
        wanted = mine()
        if wanted is None or any(given is wanted for given in kwargs.values()):
            vars(model).pop("prepare_inputs_for_generation", None)
            if wanted is not None:
                repeat_states(wanted, len(input_ids))
                repeat_index_keys(wanted, len(input_ids))
                mask = kwargs.get("attention_mask")
                if wanted.states_alone:
                    wanted.require_whole(input_ids.shape[1])
                    _read_stepwise(model, wanted, input_ids)
                seq_len = wanted.get_seq_length()
                if wanted.states_alone or guesses:
                    next_sequence_length = input_ids.shape[1] - seq_len
                if wanted.states_alone and mask is not None:
                    # Such a model takes a mask of the ids that it reads, and would spread another.
                    kwargs["attention_mask"] = mask[:, seq_len:]
        return prepare(input_ids, next_sequence_length=next_sequence_length, **kwargs)

    model.prepare_inputs_for_generation = cut


def _read_stepwise(model: Any, cache: CountingCache, ids: Tensor) -> None:
    """Let a `stepwise` model read all new ``ids [batch, tokens]`` but the last."""
    while cache.stepwise and 0 < cache.get_seq_length() < ids.shape[1] - 1:
        at = cache.get_seq_length()
        with torch.no_grad():
            model(input_ids=ids[:, at : at + 1], use_cache=True, **as_argument(model, cache))
