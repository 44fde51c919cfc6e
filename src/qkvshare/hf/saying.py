"""What a model says, as text while it says it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextStreamer


class Saying(TextStreamer):
    """A streamer for ``generate`` that hands on whole words, up to the first stop string.

    Attributes:
        text: all that was handed on.
        first_at: when the first token was there, by ``time.perf_counter``.
        stopped: whether a stop string ended it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        hand_on: Callable[[str], None],
        stop: Sequence[str] = (),
    ) -> None:
        """``hand_on`` gets each piece of text; ``stop``: strings that end it, left out."""
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text, self.first_at = "", 0.0
        self._hand_on, self._stop = hand_on, list(stop)
        self._held, self.stopped = "", False

    def put(self, value: Tensor) -> None:
        """Take the prompt, then each token."""
        if not self.next_tokens_are_prompt and not self.first_at:
            self.first_at = time.perf_counter()
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand on what cannot be the beginning of a stop string."""
        if self.stopped:
            return
        self._held += text
        found = [at for each in self._stop if (at := self._held.find(each)) >= 0]
        if found:
            self.stopped, self._held = True, self._held[: min(found)]
        kept = 0 if self.stopped or stream_end else self._unsure()
        sure = len(self._held) - kept
        piece, self._held = self._held[:sure], self._held[sure:]
        if piece:
            self.text += piece
            self._hand_on(piece)

    def _unsure(self) -> int:
        """Length of the longest end of what is held that a stop string may begin with."""
        ends = [
            length
            for each in self._stop
            for length in range(1, min(len(each), len(self._held) + 1))
            if each.startswith(self._held[-length:])
        ]
        return max(ends, default=0)


def ends_of(model: Any) -> list[int]:
    """Ids that end what the model says."""
    found = model.generation_config.eos_token_id
    if found is None:
        return []
    return list(found) if isinstance(found, (list, tuple)) else [int(found)]
