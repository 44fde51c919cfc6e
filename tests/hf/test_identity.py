"""A cache is bound to content: weights, adapter, tokenizer, template; not to names or loads."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from qkvshare import Raw, capture, identify
from qkvshare.card import Identity
from qkvshare.card.errors import IdentityError

from ..conftest import greedy, greedy_from_text, some_ids, tiny_model, tiny_tokenizer

CONTEXT, NEW = some_ids(40), some_ids(7, seed=1)


def with_lora(seed: int = 0, alpha: int = 16) -> Any:
    base = tiny_model()
    torch.manual_seed(seed)
    config = LoraConfig(
        r=2, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    return get_peft_model(base, config).eval()


def test_same_weights_have_one_identity(llama: Any, llama_folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(llama_folder)
    assert identify(llama) == identify(loaded) == identify(copy.deepcopy(llama))


@pytest.mark.slow
def test_identity_is_the_same_in_every_process(llama: Any, llama_folder: Path) -> None:
    script = (
        "import sys; from qkvshare.hf.model.load import load_model; from qkvshare import identify;"
        "import msgspec; print(msgspec.json.encode(identify(*load_model(sys.argv[1]))).decode())"
    )
    lines = {
        subprocess.run(
            [sys.executable, "-c", script, str(llama_folder)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    }
    assert len(lines) == 1
    assert identify(llama).weights in lines.pop()


def test_every_weight_counts(llama: Any) -> None:
    seen = {identify(llama).weights}
    for name, _ in llama.named_parameters():
        other = copy.deepcopy(llama)
        with torch.no_grad():
            other.get_parameter(name).view(-1)[-1] += 1e-3
        seen.add(identify(other).weights)
    assert len(seen) == 1 + len(list(llama.named_parameters()))


def test_changes_after_the_first_look_are_seen() -> None:
    model = tiny_model()
    first = identify(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] += 1e-3
    second = identify(model)
    assert second.weights != first.weights
    model.lm_head.weight.data += 1e-3  # as merging an adapter does: no version counter moves
    third = identify(model)
    assert third.weights != second.weights
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    assert identify(model).weights != third.weights


def test_generation_settings_do_not_count(llama: Any) -> None:
    other = copy.deepcopy(llama)
    other.config.pad_token_id, other.config.use_cache = 5, False
    other.set_attn_implementation("eager")
    assert identify(other) == identify(llama)


def test_tokenizer_state_does_not_count(llama: Any) -> None:
    tokenizer = tiny_tokenizer()
    before = identify(llama, tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert identify(llama, tokenizer) == before


def test_what_is_changed_after_the_first_look_counts() -> None:
    """The first look is remembered; a configuration, a buffer or a module changed later is seen."""
    model = tiny_model()
    seen = [identify(model)]
    model.config.rms_norm_eps *= 2
    seen.append(identify(model))
    model.register_buffer("extra", torch.ones(3))
    seen.append(identify(model))
    model.extra[1] = 5.0
    seen.append(identify(model))
    model.lm_head = torch.nn.Linear(*model.lm_head.weight.shape[::-1], bias=False)
    seen.append(identify(model))
    assert len({(found.weights, found.config) for found in seen}) == len(seen)
    model.register_buffer("passing", torch.ones(3), persistent=False)
    assert identify(model) == seen[-1]


def test_adapters() -> None:
    plain, one, two = tiny_model(), with_lora(), with_lora(seed=1)
    identities = [identify(model) for model in (plain, one, two, with_lora(alpha=32))]
    assert len({identity.weights for identity in identities}) == 1
    assert len({identity.adapter for identity in identities}) == 4
    assert identities[0].adapter is None
    assert identify(with_lora()) == identities[1]

    card = capture(one, None, CONTEXT, codec=Raw())
    assert greedy(one, **card.inputs(one, new=NEW)) == greedy_from_text(one, CONTEXT + NEW)
    for other in (plain, two):
        with pytest.raises(IdentityError, match="adapter: card has"):
            card.inputs(other, new=NEW)
    with one.disable_adapter(), pytest.raises(IdentityError, match="receiver has none"):
        card.inputs(one, new=NEW)
    one.merge_adapter()
    with pytest.raises(IdentityError, match="weights: card has"):
        card.inputs(one, new=NEW)


def test_weights_behind_a_replaced_module_count() -> None:
    def with_head(change: float) -> Any:
        base = tiny_model()
        with torch.no_grad():
            base.lm_head.weight[0, 0] += change
        config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
        return get_peft_model(base, config).eval()

    assert identify(with_head(0)).weights == identify(tiny_model()).weights
    assert identify(with_head(1)).weights != identify(tiny_model()).weights


@pytest.mark.parametrize("field", ["tokenizer", "chat_template"])
def test_unknown_never_matches_unknown(field: str) -> None:
    known: dict[str, Any] = {
        "weights": "w",
        "config": "c",
        "adapter": None,
        "rope": "r",
        "dtype": "float32",
        "tokenizer": "t",
        "chat_template": "p",
    }
    Identity(**known).require(Identity(**known))
    with pytest.raises(IdentityError):
        Identity(**{**known, field: None}).require(Identity(**known))
