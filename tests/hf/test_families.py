"""CONTRIBUTING's recipe for a model family, followed for families outside the standard list."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2Config, Qwen2Config

import qkvshare

from ..conftest import COMMON, greedy, greedy_from_text, some_ids

NEW = {
    "qwen2": lambda **kw: Qwen2Config(**{k: v for k, v in kw.items() if k != "head_dim"}),
    "olmo2": lambda **kw: Olmo2Config(**{k: v for k, v in kw.items() if k != "head_dim"}),
}


@pytest.mark.parametrize("family", NEW)
def test_a_new_family_says_from_a_card_what_it_says_from_the_text(family: str) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(NEW[family](**COMMON)).eval()
    context, new, other = some_ids(40), some_ids(5, seed=1), some_ids(40, seed=2)
    card = qkvshare.capture(model, None, context, codec=qkvshare.Raw())
    expected = greedy_from_text(model, context + new)
    assert greedy(model, **card.inputs(model, new=new)) == expected
    # A card of another context gives another text: the model does look at its context.
    wrong = qkvshare.capture(model, None, other, codec=qkvshare.Raw())
    assert greedy(model, **wrong.inputs(model, new=new)) != expected
