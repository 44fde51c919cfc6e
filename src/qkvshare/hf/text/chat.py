"""Chat messages as token ids: a whole conversation, or what follows one that a card holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ...card.digest import TokenIds
from ...card.errors import PromptError
from .literal import Message, literal

_LAST = "the last words"
_BEFORE: list[Message] = [
    {"role": "user", "content": "some words"},
    {"role": "assistant", "content": _LAST},
]


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, which asks the model for the assistant's turn.

    A card of a conversation ends where its last turn ends, so what follows is rendered by itself:
    what the template writes after a conversation that has been going on. (Ids are handed over,
    never text, so what an agent said is not tokenized a second time.)
    """

    tokenizer: PreTrainedTokenizerBase

    def whole(self, messages: Sequence[Message]) -> TokenIds:
        """Ids of a conversation from its start. Raises `PromptError`."""
        return self._ids(self._render(messages, asks=True))

    def following(self, messages: Sequence[Message]) -> TokenIds:
        """Ids of turns that come after others. Raises `PromptError`."""
        # Some templates render earlier turns otherwise once others follow (Qwen3 drops what was
        # thought). The card has them as they were; only what comes after them is asked for here.
        _, last, rest = self._render([*_BEFORE, *messages], asks=True).partition(_LAST)
        if not last or not rest.startswith(self._closing):
            raise PromptError(
                "the tokenizer's chat template does not write turns one after the other, so "
                "nothing can follow a card. Send the whole conversation."
            )
        return self._ids(rest[len(self._closing) :])

    @cached_property
    def closing(self) -> TokenIds:
        """Ids that end the assistant's turn."""
        return self._ids(self._closing)

    @cached_property
    def _closing(self) -> str:
        return self._render(_BEFORE, asks=False).partition(_LAST)[2]

    def _render(self, messages: Sequence[Message], asks: bool) -> str:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise PromptError(
                "the model's tokenizer has no chat template; it cannot take messages."
            )
        return literal(self.tokenizer).render(messages, asks)

    def _ids(self, rendered: str) -> TokenIds:
        return literal(self.tokenizer).ids(rendered)
