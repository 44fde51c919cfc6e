"""What a model computes beside its weights and its configuration counts to its identity."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    FourierFTConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM

from qkvshare import Raw, capture, identify
from qkvshare.card.errors import IdentityError, UnsupportedModelError

from ..conftest import FAMILIES, greedy, greedy_from_text, some_ids, tiny_model, tiny_tokenizer
from .test_identity import with_lora

CONTEXT, NEW = some_ids(40), some_ids(7, seed=1)


def _replaced_forward(model: Any) -> None:
    norm = model.model.norm
    own = norm.forward

    @wraps(own)  # it says that it is the model's own
    def half(x: torch.Tensor) -> Any:
        return own(x) * 0.5

    norm.forward = half


def _double(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
    return output * 2


def _frequencies(model: Any) -> None:
    with torch.no_grad():
        model.model.rotary_emb.inv_freq[2] *= 1.5


def _frequencies_unseen(model: Any) -> None:
    model.model.rotary_emb.inv_freq.data[3] *= 1.5


CHANGES: dict[str, Callable[[Any], object]] = {
    "inv_freq": _frequencies,
    "inv_freq by .data": _frequencies_unseen,
    "a short weight by .data": lambda m: m.model.norm.weight.data[5].mul_(2),
    "rotary scaling": lambda m: setattr(m.model.rotary_emb, "attention_scaling", 2.0),
    "attention scaling": lambda m: setattr(m.model.layers[1].self_attn, "scaling", 0.1),
    "norm epsilon": lambda m: setattr(m.model.norm, "variance_epsilon", 0.1),
    "activation": lambda m: setattr(m.model.layers[2].mlp, "act_fn", torch.nn.GELU()),
    "forward": _replaced_forward,
    "hook": lambda m: m.model.layers[0].mlp.register_forward_hook(_double),
    "hook before": lambda m: m.model.norm.register_forward_pre_hook(lambda module, x: None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_computed_besides_counts(llama: Any, change: str) -> None:
    model = tiny_model()
    card = capture(model, None, CONTEXT)
    first = identify(model)
    CHANGES[change](model)
    model.eval()
    assert identify(model) != first
    for receiver in (model, _with(change)):  # known before, and never seen
        with pytest.raises(IdentityError, match="(config|weights): card has"):
            card.inputs(receiver, new=NEW)
    assert identify(model) == identify(_with(change))
    assert identify(llama) == first


def _with(change: str) -> Any:
    model = tiny_model()
    CHANGES[change](model)
    return model.eval()


def test_a_class_whose_forward_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    first, kind = identify(model), type(model.model.norm)
    own = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: own(self, x) * 0.5)
    assert identify(model) != first
    monkeypatch.undo()
    assert identify(model) == first


def test_frequencies_in_another_number_format(tmp_path: Path) -> None:
    """``model.bfloat16()`` rounds the frequencies, ``from_pretrained`` does not: other angles."""
    tiny_model().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    cast = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).bfloat16()
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
    assert identify(loaded).weights == identify(cast).weights
    assert identify(loaded).config != identify(cast).config


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_as_it_is_loaded_departs_from_nothing(family: str, tmp_path: Path) -> None:
    from qkvshare.hf.model.departures import departures

    model = tiny_model(family)
    assert departures(model, "") == []
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert departures(loaded, "") == []


def test_wrappers_do_not_count(llama: Any) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    hooked = tiny_model()
    add_hook_to_module(hooked.model.layers[0], ModelHook())
    assert "forward" in vars(hooked.model.layers[0])
    assert identify(hooked) == identify(llama)
    compiled = torch.compile(tiny_model(), backend="eager")
    assert identify(compiled) == identify(llama)
    part = tiny_model()
    part.model.layers[1] = torch.compile(part.model.layers[1], backend="eager")
    assert identify(part) == identify(llama)
    assert identify(get_peft_model(tiny_model(), LoraConfig(r=2)).eval()).config == (
        identify(llama).config
    )


def test_names_of_adapters_and_wrappers_do_not_count(tmp_path: Path) -> None:
    one = with_lora()
    card = capture(one, None, CONTEXT, codec=Raw())
    expected = greedy_from_text(one, CONTEXT + NEW)
    inner = one.base_model.model
    assert greedy(inner, **card.inputs(inner, new=NEW)) == expected

    one.save_pretrained(tmp_path)
    named = PeftModel.from_pretrained(tiny_model(), tmp_path, adapter_name="another")
    loaded = tiny_model()
    loaded.load_adapter(str(tmp_path))
    for other in (named, loaded.eval()):
        assert identify(other) == identify(one)
        assert greedy(other, **card.inputs(other, new=NEW)) == expected
    # Which module has an adapter's tensors still counts.
    with torch.no_grad():
        attention = loaded.model.layers[0].self_attn
        attention.q_proj.lora_A["default"].weight[0, 0] += 1
    assert identify(loaded) != identify(one)


_TARGETS: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}

# Each with another one that differs in what was not trained.
UNTRAINED: dict[str, tuple[PeftConfig, PeftConfig | None]] = {
    "a bank of all layers": (VeraConfig(r=2, init_weights=False, **_TARGETS), None),
    "places": (
        FourierFTConfig(n_frequency=20, init_weights=True, random_loc_seed=1, **_TARGETS),
        FourierFTConfig(n_frequency=20, init_weights=True, random_loc_seed=2, **_TARGETS),
    ),
    "tokens": (
        TrainableTokensConfig(token_indices=[5, 6], target_modules=["embed_tokens"]),
        TrainableTokensConfig(token_indices=[6, 5], target_modules=["embed_tokens"]),
    ),
    "LoRA and tokens": (
        LoraConfig(
            r=2, init_lora_weights=False, trainable_token_indices={"embed_tokens": [5]}, **_TARGETS
        ),
        None,
    ),
}


@pytest.mark.parametrize("what", UNTRAINED)
def test_what_an_adapter_has_besides_what_was_trained(tmp_path: Path, what: str) -> None:
    def adapted(config: PeftConfig) -> Any:
        base = tiny_model()
        torch.manual_seed(0)
        model = get_peft_model(base, copy.deepcopy(config)).eval()
        for name, parameter in model.named_parameters():
            if "fourierft_spectrum" in name or "trainable_tokens_delta" in name:
                torch.nn.init.constant_(parameter, 0.5)
        return model

    config, other = UNTRAINED[what]
    model = adapted(config)
    first = identify(model)
    model.save_pretrained(tmp_path)
    named = PeftModel.from_pretrained(tiny_model(), tmp_path, adapter_name="another").eval()
    card = capture(model, None, CONTEXT, codec=Raw())
    expected = greedy_from_text(model, CONTEXT + NEW)
    for receiver in (named, model.base_model.model):
        assert identify(receiver) == first
        assert greedy(receiver, **card.inputs(receiver, new=NEW)) == expected
    if other is not None:
        assert identify(adapted(other)).adapter != first.adapter


def test_two_adapters_in_force_count_both() -> None:
    model = with_lora()
    alone = identify(model).adapter
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model.add_adapter("second", config)
    model.eval()
    assert identify(model).adapter == alone
    model.base_model.set_adapter(["default", "second"])
    both = identify(model).adapter
    model.base_model.set_adapter(["second"])
    assert len({alone, both, identify(model).adapter}) == 3


@pytest.mark.parametrize("how", ["meta", "meta buffer", "packed"])
def test_weights_without_bytes_are_refused(llama: Any, how: str) -> None:
    card, model = capture(llama, None, CONTEXT), copy.deepcopy(llama)
    if how == "meta":
        model.model.layers[1].to("meta")
    elif how == "meta buffer":
        model.model.rotary_emb.to("meta")
    else:
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
        model.eval()
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="no bytes to take a digest of.*Load the"):
            card.inputs(model, new=NEW)


def test_steps_of_a_tokenizer_count(llama: Any) -> None:
    """A change that leaves the size of the vocabulary as it is."""
    tokenizer = tiny_tokenizer()
    card = capture(llama, tokenizer, "a context of some length")
    card.inputs(llama, tokenizer, NEW)
    own = tokenizer.backend_tokenizer.pre_tokenizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(IdentityError, match="tokenizer: card has"):
        card.inputs(llama, tokenizer, NEW)
    tokenizer.backend_tokenizer.normalizer = None
    card.inputs(llama, tokenizer, NEW)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(IdentityError, match="tokenizer: card has"):
        card.inputs(llama, tokenizer, NEW)
    tokenizer.backend_tokenizer.pre_tokenizer = own
    card.inputs(llama, tokenizer, NEW)
