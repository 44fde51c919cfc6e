"""Agents as a batch: each row has a conversation of its own, and all rows speak at once.

Hand-offs between two agents of a row are real: a card is captured from the row, written to disk,
read back and put into a row of the next agents' cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from qkvshare import batch_inputs
from qkvshare.card import CacheCard
from qkvshare.codecs import Tiered
from qkvshare.hf.cache.layers import empty_cache
from qkvshare.hf.capture.capture import make_card
from qkvshare.hf.capture.live import pick_row
from qkvshare.hf.inject.batch import stack
from qkvshare.hf.model.identity import identify

from .chain import Mode, spend


@dataclass
class Row:
    """One conversation.

    Attributes:
        ids: what the model has read of it.
        unread: what was said last, and is in nobody's cache yet.
        card: what the agent got that speaks now, if anything.
    """

    ids: list[int]
    unread: list[int]
    card: CacheCard | None = None


class AgentBatch:
    """As many conversations as there are rows; one agent of each speaks at a time.

    A ``mode`` of None is one full-precision cache, which all agents of a row share. The policies
    are those of `chain`, and two more. With ``words`` the next agents get nothing but text. With
    ``wrong`` the second agents append to the card of the next row, and so do those after them.
    Each card of a codec with tiers has the budget, so allocators are compared at equal bytes.
    """

    def __init__(self, model: Any, mode: Mode | None, folder: Path, rows: int) -> None:
        """Nobody has said anything."""
        self.model, self.mode, self.folder = model, mode, folder
        self.confused = False
        self._empty(rows)

    def _empty(self, rows: int) -> None:
        self.rows = [Row([], []) for _ in range(rows)]
        # Columns of the cache, and which of them are a row's.
        self.columns = torch.empty(rows, 0, dtype=torch.long, device=self.model.device)
        self.mask = self.columns
        self.cache: Cache | None = None
        self.handed_over = False

    def hand_over(self) -> None:
        """To the next agent of each row."""
        if self.mode is None:
            return
        if self.mode.policy == "words":
            self._empty(len(self.rows))
            return
        assert self.cache is not None
        for number, row in enumerate(self.rows):
            state = pick_row(self.model, self.cache, self.columns, self.mask, number)
            parent = row.card if self.mode.policy != "requantize" else None
            codec, bits = spend(self.mode, parent)
            if isinstance(codec, Tiered):  # to be compared at equal bytes, at each hand-off
                bits = self.mode.setting.bits
            card = make_card(state, identify(self.model), codec, bits, parent=parent)
            row.card = CacheCard.load(card.save(self.folder / f"card-{number}"))
        if self.mode.policy == "wrong" and not self.confused:
            self.rows, self.confused = [*self.rows[1:], *self.rows[:1]], True
        self.handed_over = True

    def write(self, texts: Sequence[Sequence[int]], most: int, **sampling: Any) -> list[list[int]]:
        """Each row reads its text and says up to ``most`` tokens."""
        new = []
        for row, text in zip(self.rows, texts, strict=True):
            # The mark that ends a turn: the template has it, too.
            new.append([*([] if row.unread == [*text[:1]] else row.unread), *text])
        arguments = self._arguments(new)
        given = arguments["input_ids"].shape[1]
        with torch.no_grad():
            found: Tensor = self.model.generate(**arguments, max_new_tokens=most, **sampling)
        mask = torch.zeros_like(found)
        mask[:, :given] = arguments["attention_mask"]
        said = self._said(found[:, given:])
        for number, (row, words) in enumerate(zip(self.rows, said, strict=True)):
            mask[number, given : given + len(words) - 1] = 1
            row.ids += [*new[number], *words[:-1]]
            row.unread = words[-1:]
        # The last column is in no cache yet.
        self.columns, self.mask = found[:, :-1], mask[:, :-1]
        self.cache = arguments["past_key_values"]
        return said

    def _said(self, found: Tensor) -> list[list[int]]:
        """What each row has said of ``found [rows, tokens]``, the mark of the end included."""
        marks = self.model.generation_config.eos_token_id
        ends = {marks} if isinstance(marks, int) else {*(marks or [])}
        out = []
        for row in found.tolist():
            end = next((at for at, token in enumerate(row) if token in ends), len(row))
            out.append(row[: end + 1])
        return out

    def _arguments(self, new: list[list[int]]) -> dict[str, Any]:
        if self.handed_over:
            self.handed_over = False
            cards = [row.card for row in self.rows if row.card is not None]
            return {**batch_inputs(cards, self.model, new=new)}
        ids = [torch.tensor(text, device=self.model.device) for text in new]
        fresh: dict[str, Any] = {
            **stack(self.model, [empty_cache(self.model) for _ in new], ids),
        }
        if self.cache is None:
            return fresh
        for name, known in (("input_ids", self.columns), ("attention_mask", self.mask)):
            fresh[name] = torch.cat([known, fresh[name]], 1)
        return fresh | {"past_key_values": self.cache}

    @property
    def bits_per_value(self) -> list[float]:
        """Of each row's last card; of the model's numbers where agents share a cache."""
        words = self.mode is not None and self.mode.policy == "words"
        plain = 0.0 if words else 8.0 * self.model.dtype.itemsize
        return [plain if row.card is None else row.card.bits_per_value for row in self.rows]
