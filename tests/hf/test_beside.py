"""What a model takes in beside token ids: refused by name, or forgotten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import (
    CPTConfig,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from qkvshare import Raw, capture, capture_cache
from qkvshare.card.errors import CaptureError, PromptError, UnsupportedModelError

from ..conftest import COMMON, greedy, greedy_from_text, some_ids, tiny_model
from .test_handoff import live_cache

CONTEXT, NEW = some_ids(40), some_ids(7, seed=1)
IMAGE = [5, 122, 120, 120, 120, 120, 123, 9, 8]

_CAUSAL: dict[str, Any] = {"task_type": "CAUSAL_LM"}
_VIRTUAL = {**_CAUSAL, "num_virtual_tokens": 5}
_CPT = {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1]}


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(**_VIRTUAL),
        PromptEncoderConfig(**_VIRTUAL),
        PrefixTuningConfig(**_VIRTUAL),
        MultitaskPromptTuningConfig(**_VIRTUAL, num_tasks=2),
        CPTConfig(**_CAUSAL, **_CPT),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_prompt_learning_is_refused(llama: Any, config: Any) -> None:
    card = capture(llama, None, CONTEXT)
    model = get_peft_model(tiny_model(), config).eval()
    refused = pytest.raises(UnsupportedModelError, match=f"{config.peft_type.value} .prompt learn")
    with refused:
        capture(model, None, CONTEXT)
    with refused:
        card.inputs(model, new=NEW)


def with_alora(invocation: list[int]) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(
        **_CAUSAL,
        alora_invocation_tokens=invocation,
        target_modules=["q_proj", "k_proj", "v_proj"],
        init_lora_weights=False,
    )
    return get_peft_model(tiny_model(), config).eval()


@pytest.mark.parametrize(
    ("invocation", "at"),
    [(CONTEXT[5:8], 5), (CONTEXT[-1:] + NEW[:2], 39)],
    ids=["inside", "from the last token on"],
)
def test_tokens_that_switch_an_adapter_on_are_not_in_a_card(invocation: list[int], at: int) -> None:
    with pytest.raises(PromptError, match=f"token {at} begins the tokens that switch"):
        capture(with_alora(invocation), None, CONTEXT)
    # The same weights, so the same identity, and nothing of that kind in these ids.
    card = capture(with_alora([127]), None, CONTEXT)
    with pytest.raises(PromptError, match=f"token {at} begins the tokens that switch"):
        card.inputs(with_alora(invocation), new=NEW)


def test_tokens_that_switch_an_adapter_on_after_a_card() -> None:
    model = with_alora(NEW[2:4])
    card = capture(model, None, CONTEXT, codec=Raw())
    expected = greedy_from_text(model, CONTEXT + NEW)
    assert greedy(model, **card.inputs(model, new=NEW)) == expected
    assert expected != greedy_from_text(tiny_model(), CONTEXT + NEW)


def test_training_mode_is_refused(llama: Any) -> None:
    card, live = capture(llama, None, CONTEXT), live_cache(llama, CONTEXT)
    model = tiny_model(attention_dropout=0.5)
    capture(model, None, CONTEXT)
    refused = pytest.raises(UnsupportedModelError, match=r"training mode.* Call model.eval\(\)")
    model.model.layers[1].self_attn.train()  # a part is enough
    for _ in range(2):
        with refused:
            capture(model, None, CONTEXT)
        with refused:
            capture_cache(model, live, CONTEXT)
        with refused:
            card.inputs(model, new=NEW)
        model.train()
        model.gradient_checkpointing_enable()
    model.eval()
    card.inputs(tiny_model(), new=NEW)


def qwen2_vl() -> Any:
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = {**COMMON, "rope_parameters": rope}
    del text["head_dim"]
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=120,
        video_token_id=121,
        vision_start_token_id=122,
        vision_end_token_id=123,
    )
    return Qwen2VLForConditionalGeneration(config).eval()


def look_at_a_picture(model: Any) -> None:
    ids = torch.tensor([IMAGE])
    greedy(
        model,
        2,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.randn(16, 96),
        image_grid_thw=torch.tensor([[1, 4, 4]]),
        mm_token_type_ids=(ids == 120).int(),
    )
    assert model.model.rope_deltas.tolist() == [[-2]]


def test_a_model_whose_first_use_was_a_picture() -> None:
    """It is looked at when a card comes, and must not be taken for one that counts otherwise."""
    card = capture(qwen2_vl(), None, CONTEXT, codec=Raw())
    model = qwen2_vl()
    look_at_a_picture(model)
    given = card.inputs(model, new=NEW)
    assert greedy(model, **given) == greedy_from_text(qwen2_vl(), CONTEXT + NEW)


def test_an_earlier_picture_does_not_shift_a_text() -> None:
    model = qwen2_vl()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([CONTEXT + NEW])).logits[0, -1]
    text = greedy_from_text(model, CONTEXT + NEW)
    look_at_a_picture(model)
    card = capture(model, None, CONTEXT, codec=Raw())
    look_at_a_picture(model)
    assert greedy(model, **card.inputs(model, new=NEW)) == text
    look_at_a_picture(model)
    given = card.inputs(model, new=NEW, new_only=True)
    with torch.no_grad():
        torch.testing.assert_close(model(**given).logits[0, -1], expected)


def test_placeholders_of_pictures_are_refused() -> None:
    model = qwen2_vl()
    for ids in (IMAGE, [*CONTEXT, 121]):
        with pytest.raises(PromptError, match="the model's (image|video)_token_id: it stands for"):
            capture(model, None, ids)
    capture(model, None, [*CONTEXT, 122, 123], codec=Raw())  # tokens as others are


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("change", [-3, 2])
def test_layers_of_unequal_length_are_refused(family: str, change: int) -> None:
    model = tiny_model(family)
    cache = live_cache(model, CONTEXT)
    layer = cache.layers[1]  # full attention in both
    for part in ("keys", "values"):
        held = getattr(layer, part)
        other = held[:, :, -change:] if change < 0 else torch.cat([held, held[:, :, :change]], 2)
        setattr(layer, part, other)
    with pytest.raises(CaptureError, match=f"layer 1 of the cache holds {40 + change} tokens, exp"):
        capture_cache(model, cache, CONTEXT)
