"""The text of an answer, while the model generates it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ...card.digest import TokenIds
from ..text.detokenizer import Detokenizer


class AnswerStream(BaseStreamer):
    """A streamer for ``generate`` that passes text on once it is certain, up to a stop string.

    Attributes:
        text: all that was passed on.
        first_at: when the first token was there, by ``time.perf_counter``.
        stopped: whether a stop string ended it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        on_text: Callable[[str], None],
        stop: Sequence[str] = (),
        keeps: Collection[int] = (),
    ) -> None:
        """``on_text`` gets each piece of text; ``stop``: strings that end it, left out; ``keeps``:
        special tokens that are text here."""
        self.text, self.first_at = "", 0.0
        self._tokenizer, self._keeps = tokenizer, keeps
        self._detokenizer = Detokenizer(tokenizer, keeps=keeps)
        self._prompt_is_next = True
        self._on_text, self._stop = on_text, list(stop)
        self._pending, self.stopped = "", False

    def put(self, value: Tensor) -> None:
        """Take the prompt, then each token."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self.first_at = self.first_at or time.perf_counter()
        for token in value.flatten().tolist():
            self._add(self._detokenizer.add(token))

    def end(self) -> None:
        """Pass on what is left; bytes at the end that are no whole character are left out."""
        self._add(self._detokenizer.end(), last=True)

    def ids_of_text(self, new: TokenIds) -> TokenIds:
        """Those of the ``new`` ids that `text` is made of; others have no text to be found by.

        They lack bytes that are no whole character, a stop string, and the end of the message.
        """
        marks = self._detokenizer.marks
        count, length = max(mark for mark in marks if mark[1] <= len(self.text))
        if length == len(self.text):
            return new[:count]
        # The stop string begins within a token: other tokens spell what comes before it.
        tail = self._tokenizer(self.text[length:], add_special_tokens=False)["input_ids"]
        ids = np.concatenate([new[:count], np.array(tail, np.int32)])
        text = (
            "".join(
                map((again := Detokenizer(self._tokenizer, keeps=self._keeps)).add, ids.tolist())
            )
            + again.end()
        )
        return ids if text == self.text else new

    def _add(self, text: str, last: bool = False) -> None:
        """Pass on what cannot be the beginning of a stop string."""
        if self.stopped:
            return
        self._pending += text
        found = [at for each in self._stop if (at := self._pending.find(each)) >= 0]
        if found:
            self.stopped, self._pending = True, self._pending[: min(found)]
        kept = 0 if self.stopped or last else self._unsure()
        sure = len(self._pending) - kept
        piece, self._pending = self._pending[:sure], self._pending[sure:]
        if piece:
            self.text += piece
            self._on_text(piece)

    def _unsure(self) -> int:
        """Length of the longest end of the pending text that a stop string may begin with."""
        ends = [
            length
            for each in self._stop
            for length in range(1, min(len(each), len(self._pending) + 1))
            if each.startswith(self._pending[-length:])
        ]
        return max(ends, default=0)


def ends_of(model: Any) -> list[int]:
    """Ids that end an answer."""
    config = model.generation_config
    found = None if config is None else config.eos_token_id
    if found is None:
        return []
    return list(found) if isinstance(found, (list, tuple)) else [int(found)]
