"""Chat messages as token ids: a whole conversation, or what follows one that a card holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from ...card.digest import TokenIds
from ...card.errors import PromptError
from .literal import literal
from .messages import ASKED, SOME_TOOL, Message, Tool, called

_LAST = "the last words"
_BEFORE: list[Message] = [ASKED, {"role": "assistant", "content": _LAST}]


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, which asks the model for the assistant's turn.

    A card of a conversation ends where its last turn ends, so what follows is rendered by itself:
    what the template writes after a conversation that has been going on. (Ids are handed over,
    never text, so what an agent said is not tokenized a second time.)
    """

    tokenizer: PreTrainedTokenizerBase

    def whole(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Ids of a conversation from its start, with the tools that the model may call.

        Raises `PromptError`, also for a template that does not show tools to the model.
        """
        if tools and not self.shows_tools:
            raise PromptError(
                "the model's chat template does not take tools, so that it would not know of them. "
                "Leave them out, or serve a model that was trained to call tools."
            )
        return self._ids(self._render(messages, asks=True, tools=tools))

    def following(self, messages: Sequence[Message]) -> TokenIds:
        """Ids of turns that come after others. Raises `PromptError`."""
        if messages and messages[0]["role"] == "tool":
            return self._ids(self._after_calls(messages))
        # Some templates render earlier turns otherwise once others follow (Qwen3 drops what was
        # thought). The card has them as they were; only what comes after them is asked for here.
        _, last, rest = self._render([*_BEFORE, *messages], asks=True).partition(_LAST)
        if not last or not rest.startswith(self._closing):
            raise _not_in_turn()
        return self._ids(rest[len(self._closing) :])

    def _after_calls(self, messages: Sequence[Message]) -> str:
        """What tools gave, behind the turn that called them: a template may look for the calls."""
        gave = [*takewhile(lambda message: message["role"] == "tool", messages)]
        calls = called([str(message.get("tool_call_id", "")) for message in gave])[0]
        before = self._render([ASKED, calls], asks=False)
        whole = self._render([ASKED, calls, *messages], asks=True)
        if not before.endswith(self._closing) or not whole.startswith(before):
            raise _not_in_turn()
        return whole[len(before) :]

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template shows the model the tools that it may call."""
        name = str(SOME_TOOL["function"]["name"])
        return name in self._render([ASKED], asks=True, tools=[SOME_TOOL])

    @cached_property
    def closing(self) -> TokenIds:
        """Ids that end the assistant's turn."""
        return self._ids(self._closing)

    @cached_property
    def _closing(self) -> str:
        return self._render(_BEFORE, asks=False).partition(_LAST)[2]

    def _render(self, messages: Sequence[Message], asks: bool, tools: Sequence[Tool] = ()) -> str:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise PromptError(
                "the model's tokenizer has no chat template; it cannot take messages."
            )
        return literal(self.tokenizer).render(messages, asks, tools)

    def _ids(self, rendered: str) -> TokenIds:
        return literal(self.tokenizer).ids(rendered)


def _not_in_turn() -> PromptError:
    return PromptError(
        "the tokenizer's chat template does not write turns one after the other, so nothing can "
        "follow a card. Send the whole conversation."
    )
