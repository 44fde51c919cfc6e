"""One card is one sequence: picked from a batch, without its padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from qkvshare import Raw, capture, capture_cache
from qkvshare.card.errors import CaptureError, PromptError

from ..conftest import FAMILIES, greedy, greedy_from_text, some_ids, tiny_model

ROWS = [some_ids(20), some_ids(13, seed=5)]
NEW = some_ids(7, seed=1)


def read_batch(model: Any, side: str, positions: bool = True) -> dict[str, Any]:
    """Read both rows, the shorter one padded, as generate would."""
    length = max(map(len, ROWS))
    padding = [[0] * (length - len(row)) for row in ROWS]
    ones = [[1] * len(row) for row in ROWS]
    pairs = list(zip(ROWS, padding, ones, strict=True))
    if side == "left":
        ids = torch.tensor([pad + row for row, pad, _ in pairs])
        mask = torch.tensor([pad + one for _, pad, one in pairs])
    else:
        ids = torch.tensor([row + pad for row, pad, _ in pairs])
        mask = torch.tensor([one + pad for _, pad, one in pairs])
    cache = DynamicCache(config=model.config)
    extra = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if positions else {}
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, past_key_values=cache, **extra)
    return {"ids": ids, "attention_mask": mask, "cache": cache, "codec": Raw()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row", [0, 1])
def test_left_padded_row(family: str, row: int) -> None:
    model = tiny_model(family)
    card = capture_cache(model, **read_batch(model, "left"), row=row)
    assert card.token_ids.tolist() == ROWS[row]
    expected = greedy_from_text(model, ROWS[row] + NEW)
    assert greedy(model, **card.inputs(model, new=NEW)) == expected


@pytest.mark.parametrize("row", [0, 1])
def test_right_padded_row(llama: Any, row: int) -> None:
    card = capture_cache(llama, **read_batch(llama, "right"), row=row)
    expected = greedy_from_text(llama, ROWS[row] + NEW)
    assert greedy(llama, **card.inputs(llama, new=NEW)) == expected


def test_right_padding_that_pushed_tokens_out_of_a_window() -> None:
    model = tiny_model("mistral")
    with pytest.raises(CaptureError, match="Pad on the left"):
        capture_cache(model, **read_batch(model, "right"), row=1)


def test_padding_that_moved_the_positions(llama: Any) -> None:
    # a plain forward counts the padding as positions; the keys are not where a card puts them
    with pytest.raises(CaptureError, match="every row starts at position 0"):
        capture_cache(llama, **read_batch(llama, "left", positions=False), row=1)


def test_batch_needs_a_row(llama: Any) -> None:
    batch = read_batch(llama, "left")
    with pytest.raises(CaptureError, match="2 sequences; pick one"):
        capture_cache(llama, **batch)
    with pytest.raises(CaptureError, match="row 2 of a batch of 2"):
        capture_cache(llama, **batch, row=2)


def test_several_prompts_at_once(llama: Any) -> None:
    with pytest.raises(PromptError, match="One card is one sequence"):
        capture(llama, None, torch.zeros(2, 5, dtype=torch.long))


def test_after_generate(llama: Any) -> None:
    ids = torch.tensor([ROWS[0]])
    done = llama.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=5,
        do_sample=False,
        return_dict_in_generate=True,
    )
    with pytest.raises(CaptureError, match=r"pass sequences\[:, :-1\]"):
        capture_cache(llama, done.past_key_values, done.sequences)
    card = capture_cache(llama, done.past_key_values, done.sequences[:, :-1], codec=Raw())
    expected = greedy_from_text(llama, done.sequences[0].tolist())
    assert greedy(llama, **card.inputs(llama, new=done.sequences[0, -1:])) == expected
