"""Token ids: from what the caller has to a checked array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...card.digest import TokenIds
from ...card.errors import CaptureError, ContextLengthExceededError, PromptError
from ..model.config import text_config
from ..model.rope import length_limit
from .literal import find, literal
from .messages import Message

Ids = Sequence[int] | Tensor | npt.NDArray[np.integer[Any]]


def as_array(ids: Ids) -> npt.NDArray[Any]:
    """Ids as numpy holds them, unchecked."""
    return np.asarray(ids.detach().cpu() if isinstance(ids, Tensor) else ids)


def as_ids(ids: Ids, what: str = "token ids") -> TokenIds:
    """One sequence of ids as int32 ``[tokens]``; accepts ``[tokens]`` or ``[1, tokens]``.

    Raises `PromptError` for anything else.
    """
    array = as_array(ids)
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, np.int32)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise PromptError(
            f"{what}: found {array.dtype} of shape {list(array.shape)}, expected integers of "
            "shape [tokens] or [1, tokens]. One card is one sequence."
        )
    if array.min() < 0 or array.max() >= 2**31:
        raise PromptError(f"{what}: found the id {array.min()} … {array.max()}, expected 31 bits.")
    return array.astype(np.int32)


def ids_of(
    tokenizer: PreTrainedTokenizerBase | None, source: str | Sequence[Message] | Ids
) -> TokenIds:
    """Ids of a text, of chat messages by the tokenizer's template, or of ids.

    Raises `CaptureError` and `PromptError`.
    """
    sequence = isinstance(source, Sequence) and len(source) > 0
    if isinstance(source, str) or (sequence and isinstance(source[0], Mapping)):
        return tokenize(tokenizer, cast("str | Sequence[Message]", source))
    return as_ids(cast(Ids, source))


def tokenize(
    tokenizer: PreTrainedTokenizerBase | None, source: str | Sequence[Message]
) -> TokenIds:
    """Ids of a text, or of chat messages by the tokenizer's template. Raises `CaptureError`."""
    if tokenizer is None:
        raise CaptureError("a text needs its tokenizer; pass the tokenizer, or token ids.")
    if isinstance(source, str):
        return _opening(tokenizer, source)
    if not source:
        return np.empty(0, np.int32)
    if getattr(tokenizer, "chat_template", None) is None:
        raise CaptureError("the tokenizer has no chat template; pass the prompt as one string.")
    words = literal(tokenizer)  # what a message says is text, whatever it spells
    return words.ids(words.render(source))


def following(tokenizer: PreTrainedTokenizerBase | None, text: str) -> TokenIds:
    """Ids of a text in the middle of others: no BOS, no EOS. Raises `PromptError`."""
    if tokenizer is None:
        raise PromptError("a text needs its tokenizer; pass tokenizer=, or token ids.")
    return as_ids(tokenizer(text, add_special_tokens=False)["input_ids"])


def _opening(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenIds:
    """Ids of a text at the start of a context, with the special tokens that belong before it.

    What the tokenizer adds behind a text (EOS, SEP) is left out, since the context goes on. A BOS
    is not added to a text that has one: a rendered chat template does.
    """
    plain = as_ids(tokenizer(text, add_special_tokens=False)["input_ids"])
    whole = as_ids(tokenizer(text)["input_ids"])
    before = find(whole, plain)
    if before is None:  # the tokenizer writes special tokens in between: it knows best
        return whole
    added = whole[:before]
    if len(plain) >= before > 0 and np.array_equal(plain[:before], added):
        added = added[:0]
    return np.concatenate([added, plain])


def require_vocabulary(model: PreTrainedModel, ids: TokenIds, what: str) -> None:
    """Raise `PromptError` unless all ids are in the model's vocabulary."""
    size = text_config(model).vocab_size
    if len(ids) and ids.max() >= size:
        at = int(np.argmax(ids >= size))
        raise PromptError(
            f"{what}: token {at} has id {ids[at]}, the model's vocabulary has {size}. "
            "The ids come from another tokenizer."
        )


def too_long(limit: int, prompt: int, closing: int = 0) -> ContextLengthExceededError:
    """For a prompt of so many tokens, and ``closing`` ones that end its answer; OpenAI's words."""
    more = f", and keeping it as a card takes {closing} more" if closing else ""
    return ContextLengthExceededError(
        f"This model's maximum context length is {limit} tokens. However, your messages resulted "
        f"in {prompt} tokens{more}, and an answer has one at least. Please reduce the length of "
        "the messages."
    )


def require_length(model: PreTrainedModel, tokens: int) -> None:
    """Raise `PromptError` where the model's context would be exceeded."""
    limit = length_limit(model)
    if limit is not None and tokens > limit:
        own = getattr(text_config(model), "max_position_embeddings", limit)
        why = "" if own == limit else " before all of its keys change (RoPE type 'longrope')"
        raise PromptError(
            f"{tokens} tokens are more than the {limit} that the model can read{why}; "
            "shorten the context or the prompt."
        )
