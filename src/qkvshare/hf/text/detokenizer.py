"""From token ids to text while they come: the pieces together are what all ids decode to."""

from __future__ import annotations

import re
from collections.abc import Collection

from transformers import PreTrainedTokenizerBase

# What a decoder writes for bytes that are no character, or not a whole one yet.
_LOST = "\ufffd"
# SentencePiece vocabularies spell a byte so. Decoders read a run of them at once, and a byte that
# does not fit makes the whole run unreadable, so nothing of a run is certain before it ends.
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_MOST_PENDING = 64  # tokens without a whole character, after which text to look at shows them


class Detokenizer:
    """Decodes one sequence of ids, token by token.

    A token is decoded behind the tokens before it, since decoders treat the first token of a text
    otherwise: they drop the space that it begins with.

    Attributes:
        text: what is certain so far.
        marks: pairs (ids, characters): the first so many ids, special ones included, are so many
            characters of the text. The last pair says which ids all of the text is of.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        answer: bool = True,
        keeps: Collection[int] = (),
    ) -> None:
        """For ids of ``tokenizer``.

        ``answer``: leave out special tokens but those of ``keeps``, and text that a later token
        could change. False for text to look at, where each token shows what it adds.
        """
        self._tokenizer, self._answer = tokenizer, answer
        self._special = special_ids(tokenizer) - {*keeps} if answer else set[int]()
        self._before: list[int] = []  # the last ones in the text, which the next are decoded behind
        self._known = ""  # what they decode to
        self._pending: list[int] = []  # not in the text yet
        self._places: list[int] = []  # of each of them, how many ids there were with it
        self._count = 0
        self.text, self.marks = "", [(0, 0)]

    def add(self, token: int) -> str:
        """Take the next id; returns the text that is certain now and was not before."""
        self._count += 1
        if token in self._special:
            return ""
        self._pending.append(token)
        self._places.append(self._count)
        if self._answer and _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token))):
            return ""
        text = self._decode(self._before + self._pending)
        patient = self._answer or len(self._pending) < _MOST_PENDING
        if patient and (text.endswith(_LOST) or not text.startswith(self._known)):
            return ""
        return self._take(text)

    def end(self) -> str:
        """The rest of the text; an answer drops bytes at its end that are no whole character."""
        while self._pending:
            text = self._decode(self._before + self._pending)
            if not (self._answer and text.endswith(_LOST)):
                return self._take(text)
            del self._pending[-1], self._places[-1]
        return ""

    def _take(self, text: str) -> str:
        """Move the pending ids into the text; ``text`` is what they decode to behind the others."""
        piece = text[len(self._known) :]
        self.text += piece
        self.marks.append((self._places[-1], len(self.text)))
        self._before, self._pending, self._places = self._pending, [], []
        self._known = self._decode(self._before)
        return piece

    def _decode(self, ids: list[int]) -> str:
        # Clean-up would change what was said: it drops spaces before punctuation.
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of tokens that are no text: they control the model."""
    added = tokenizer.added_tokens_decoder
    return {*tokenizer.all_special_ids, *(at for at, token in added.items() if token.special)}
