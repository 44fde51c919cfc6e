"""From the text of an answer, piece by piece, to what it says and the tools that it calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_parsing import ResponseParser

from ...card.errors import UnsupportedModelError
from ..session.streaming import AnswerStream
from ..text.messages import Tool
from .calls import ToolCall, calls_in
from .formats import CALLS, tool_format


@dataclass(frozen=True)
class Tools:
    """What the model may call: one of the ``offered``, or several if ``parallel``."""

    offered: Sequence[Tool]
    parallel: bool = True


class ToolReader:
    """Passes on content and calls as soon as they are certain.

    What looks like a call and cannot be read as one is content, as the model wrote it.

    Attributes:
        text: the content so far.
        calls: those so far.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tools: Tools,
        on_text: Callable[[str], None],
        on_call: Callable[[ToolCall], None],
    ) -> None:
        """Raises `UnsupportedModelError` where nobody knows how the model writes calls."""
        how = tool_format(tokenizer)
        if how is None:
            raise UnsupportedModelError(
                "how this model writes calls of tools is not known here, by its chat template or a "
                "response_template of its tokenizer. Leave the tools out, or set the latter."
            )
        self.text, self.calls = "", list[ToolCall]()
        self._tokenizer, self._how = tokenizer, how
        self._on_text, self._on_call, self._parallel = on_text, on_call, tools.parallel
        self._offered = {str(tool["function"]["name"]) for tool in tools.offered}
        # The schemas say which arguments are numbers, where a family writes them without quotes.
        self._parser = ResponseParser(how.template, prefix="", tools=[*tools.offered])
        self._stream: AnswerStream | None = None
        self._raw, self._done = "", 0  # all of the answer; how much of it has been passed on
        self._body, self._lost = "", False

    def stream(self, stop: Sequence[str]) -> AnswerStream:
        """What the model writes into; it ends at one of ``stop``, or after an only call."""
        keeps = self._how.words(self._tokenizer)
        self._stream = AnswerStream(self._tokenizer, self.feed, stop, keeps)
        return self._stream

    def feed(self, piece: str) -> None:
        """Take the next piece of the answer."""
        self._raw += piece
        self._take(lambda: self._parser.feed(piece))

    def end(self) -> None:
        """There is no more."""
        self._take(lambda: self._parser.finalize()[1])

    def _take(self, more: Callable[[], list[dict[str, Any]]]) -> None:
        try:
            events = [] if self._lost else more()
        except ValueError:  # of a call that transformers cannot read, and it cannot go on
            self._lost, events = True, []
        if self._lost:
            self._say(self._raw[self._done :])
        for event in events:
            if self.calls and not self._parallel:
                return
            called = event["field"] == CALLS
            if event["type"] == "region_chunk" and called:
                self._body += event["text"]
            elif event["type"] == "region_chunk":
                self._done = self._raw.index(event["text"], self._done)
                self._say(event["text"])
            elif event["type"] == "region_close" and called:
                self._call(event["value"])

    def _call(self, value: Any) -> None:
        opened, closes = self._how.opens.search(self._raw, self._done), self._how.closes
        assert opened is not None
        end = opened.end() + len(self._body)
        closed = closes.match(self._raw, end) if closes is not None else None
        # A JSON text tells whether it is whole; another one may be the beginning of a call.
        whole = closed is not None or self._how.calls["content"] == "text"
        end, self._body = end if closed is None else closed.end(), ""
        try:
            found = calls_in(value if whole else None)
        except (ValueError, RecursionError):
            found = []
        # JSON without a mark may be an answer like any other.
        marked = opened[0].strip("`json \n")
        if not found or not (marked or self._offered.issuperset(call.name for call in found)):
            self._say(self._raw[self._done : end])
            return
        self._done = end
        for call in found if self._parallel else found[:1]:
            self.calls.append(call)
            self._on_call(call)
        if not self._parallel and self._stream is not None:
            self._stream.stopped = True

    def _say(self, text: str) -> None:
        self.text += text
        self._done += len(text)
        if text:
            self._on_text(text)
