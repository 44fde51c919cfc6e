"""Every option of ``GenerationConfig`` beside a card: the text without a hand-off, or a refusal.

A new release of transformers that brings a new option fails `test_the_table_is_complete`, and
somebody has to find out which of the two it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from qkvshare import Raw, capture
from qkvshare.card.errors import PromptError, QKVShareError

from ..conftest import some_ids, tiny_model, tiny_tokenizer

CONTEXT, NEW = some_ids(24), some_ids(5, seed=1)
IDS = torch.tensor([CONTEXT + NEW])
LENGTH = len(CONTEXT + NEW)
FAMILIES = ["llama", "qwen3", "mistral", "gemma3"]  # the last two have sliding windows

Said = list[int]  # what the model says greedily, without any option
Options = dict[str, Any] | Callable[[Said], dict[str, Any]]


class Case(NamedTuple):
    """What is handed to ``generate``, and whether there is text then."""

    options: Options
    refused: bool = False


SAMPLE = {"do_sample": True}
BEAMS = {"num_beams": 3}
LOOKUP = {"prompt_lookup_num_tokens": 3}


def ends(said: Said) -> dict[str, Any]:
    """The model says this token early, and again and again."""
    return {"eos_token_id": said[1], "pad_token_id": 0}


def assisted(**more: Any) -> Options:
    return lambda said: {"assistant_model": assistant(), **more}


CASES: dict[str, Case] = {
    "max_length": Case({"max_length": LENGTH + 4, "max_new_tokens": None}),
    "max_new_tokens": Case({"max_new_tokens": 3}),
    "min_length": Case(lambda said: ends(said) | {"min_length": LENGTH + 4}),
    "min_new_tokens": Case(lambda said: ends(said) | {"min_new_tokens": 4}),
    "early_stopping": Case(lambda said: ends(said) | BEAMS | {"early_stopping": True}),
    "max_time": Case({"max_time": 1000.0}),
    "stop_strings": Case({"stop_strings": ["a", "e", "i"], "tokenizer": tiny_tokenizer()}),
    "do_sample": Case(SAMPLE),
    "num_beams": Case(BEAMS),
    "use_mtp": Case({"use_mtp": True}, refused=True),
    "use_cache": Case({"use_cache": False}, refused=True),
    "cache_implementation": Case({"cache_implementation": "static"}, refused=True),
    "cache_config": Case({"cache_config": {"backend": "quanto"}}),
    "max_cache_len": Case({"max_cache_len": 99}),
    "temperature": Case(SAMPLE | {"temperature": 0.5}),
    "top_k": Case(SAMPLE | {"top_k": 7}),
    "top_p": Case(SAMPLE | {"top_p": 0.8}),
    "min_p": Case(SAMPLE | {"min_p": 0.05}),
    "top_h": Case(SAMPLE | {"top_h": 0.5}),
    "typical_p": Case(SAMPLE | {"typical_p": 0.8}),
    "epsilon_cutoff": Case(SAMPLE | {"epsilon_cutoff": 0.01}),
    "eta_cutoff": Case(SAMPLE | {"eta_cutoff": 0.01}),
    "repetition_penalty": Case({"repetition_penalty": 1.5}),
    "encoder_repetition_penalty": Case({"encoder_repetition_penalty": 1.5}),
    "length_penalty": Case(lambda said: ends(said) | BEAMS | {"length_penalty": 3.0}),
    "no_repeat_ngram_size": Case({"no_repeat_ngram_size": 1}),
    "bad_words_ids": Case(lambda said: {"bad_words_ids": [[said[0]], [CONTEXT[-1], said[1]]]}),
    "renormalize_logits": Case(SAMPLE | {"renormalize_logits": True, "top_k": 5}),
    "forced_bos_token_id": Case({"forced_bos_token_id": 5}),
    "forced_eos_token_id": Case({"forced_eos_token_id": 5}),
    "remove_invalid_values": Case({"remove_invalid_values": True}),
    "exponential_decay_length_penalty": Case(
        lambda said: ends(said) | {"exponential_decay_length_penalty": (2, 1.7)}
    ),
    "suppress_tokens": Case(lambda said: {"suppress_tokens": said[:2]}),
    "begin_suppress_tokens": Case(lambda said: {"begin_suppress_tokens": said[:1]}),
    "sequence_bias": Case(lambda said: {"sequence_bias": [[[NEW[-1], said[0]], -30.0]]}),
    "token_healing": Case({"token_healing": True, "tokenizer": tiny_tokenizer()}),
    "guidance_scale": Case({"guidance_scale": 1.5}),
    "watermarking_config": Case(
        {"watermarking_config": {"bias": 5.0, "seeding_scheme": "selfhash"}}
    ),
    "num_return_sequences": Case(SAMPLE | {"num_return_sequences": 3}),
    "output_attentions": Case({"output_attentions": True, "return_dict_in_generate": True}),
    "output_hidden_states": Case({"output_hidden_states": True, "return_dict_in_generate": True}),
    "output_scores": Case({"output_scores": True, "return_dict_in_generate": True}),
    "output_logits": Case({"output_logits": True, "return_dict_in_generate": True}),
    "return_dict_in_generate": Case({"return_dict_in_generate": True}),
    "pad_token_id": Case({"pad_token_id": 7}),
    "bos_token_id": Case({"bos_token_id": 7}),
    "eos_token_id": Case(ends),
    "encoder_no_repeat_ngram_size": Case({"encoder_no_repeat_ngram_size": 1}),
    "decoder_start_token_id": Case({"decoder_start_token_id": 5}),
    "is_assistant": Case({"is_assistant": True}, refused=True),
    "num_assistant_tokens": Case(assisted(num_assistant_tokens=2)),
    "num_assistant_tokens_schedule": Case(assisted(num_assistant_tokens_schedule="heuristic")),
    "assistant_confidence_threshold": Case(assisted(assistant_confidence_threshold=0.9)),
    "prompt_lookup_num_tokens": Case(LOOKUP),
    "max_matching_ngram_size": Case(LOOKUP | {"max_matching_ngram_size": 1}),
    "assistant_early_exit": Case({"assistant_early_exit": 1}),
    "assistant_lookbehind": Case(assisted(assistant_lookbehind=3)),
    "target_lookbehind": Case(assisted(target_lookbehind=3)),
    "assistant_ensemble_weight": Case(assisted(assistant_ensemble_weight=0.5)),
    "speculation_type": Case({"speculation_type": "dflash"}),
    "compile_config": Case({"compile_config": None}),
    "disable_compile": Case({"disable_compile": True}),
    "continuous_batching_config": Case({"continuous_batching_config": None}),
    "low_memory": Case({"low_memory": True}),
    "penalty_alpha": Case({"penalty_alpha": 0.6, "top_k": 4}, refused=True),
    "dola_layers": Case({"dola_layers": "low"}, refused=True),
    "diversity_penalty": Case(
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, refused=True
    ),
    "num_beam_groups": Case({"num_beams": 4, "num_beam_groups": 2}, refused=True),
    "constraints": Case({"constraints": [object()], **BEAMS}, refused=True),
    "force_words_ids": Case({"force_words_ids": [[5]], **BEAMS}, refused=True),
    "prefill_chunk_size": Case({"prefill_chunk_size": 2}),
}
# They say where a configuration comes from, and nothing about text.
NO_OPTIONS = {"_from_model_config", "transformers_version"}


@cache
def assistant() -> Any:
    return tiny_model("llama", seed=1, num_hidden_layers=1)


@cache
def hand_off(family: str) -> tuple[Any, Any, Said]:
    """A model, a card that loses nothing, and what the model says greedily after the text."""
    # Attention of transformers' own, the only one that gives its weights out.
    model = tiny_model(family, attn_implementation="eager")
    card = capture(model, None, CONTEXT, codec=Raw())
    return model, card, sequences(model, from_text(), {})[0][LENGTH:]


def from_text() -> dict[str, Any]:
    return {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def sequences(model: Any, given: dict[str, Any], options: dict[str, Any]) -> list[list[int]]:
    torch.manual_seed(0)
    found = model.generate(**given, **{"max_new_tokens": 6, "do_sample": False} | options)
    return getattr(found, "sequences", found).tolist()  # type: ignore[no-any-return]


def options_of(case: Case, said: Said) -> dict[str, Any]:
    return case.options(said) if callable(case.options) else case.options


def test_the_table_is_complete() -> None:
    assert set(vars(GenerationConfig())) - NO_OPTIONS == set(CASES)


@pytest.mark.parametrize("option", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_without_a_hand_off_or_a_refusal(family: str, option: str) -> None:
    model, card, said = hand_off(family)
    case = CASES[option]
    options = options_of(case, said)
    given = card.inputs(model, new=NEW)
    if case.refused:
        with pytest.raises((QKVShareError, ValueError, TypeError, AttributeError)):
            sequences(model, given, options)
        return
    assert sequences(model, given, options) == sequences(model, from_text(), options)


@pytest.mark.parametrize("option", [name for name, case in CASES.items() if not case.refused])
def test_options_that_a_model_comes_with(option: str) -> None:
    """``generation_config.json`` says the same things, and nobody sees them in a call."""
    model, card, said = hand_off("llama")
    case, own = CASES[option], model.generation_config
    options = options_of(case, said)
    calls = {"tokenizer", "assistant_model"}  # arguments of generate alone
    given = {name: value for name, value in options.items() if name in calls}
    shipped = {name: value for name, value in options.items() if name not in calls}
    model.generation_config = GenerationConfig(**{**own.to_diff_dict(), **shipped})
    limits = {"max_new_tokens": shipped.get("max_new_tokens", 6)}
    limits |= {"do_sample": bool(shipped.get("do_sample"))}
    try:
        found = sequences(model, card.inputs(model, new=NEW), limits | given)
        assert found == sequences(model, from_text(), limits | given)
    finally:
        model.generation_config = own


@pytest.mark.parametrize("shipped", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_a_cache_is_used_whatever_the_model_says(shipped: dict[str, Any]) -> None:
    model, card, said = hand_off("mistral")
    own = model.generation_config
    model.generation_config = GenerationConfig(**shipped)
    try:
        assert sequences(model, card.inputs(model, new=NEW), {})[0][LENGTH:] == said
    finally:
        model.generation_config = own


def test_a_config_object_that_forbids_the_cache() -> None:
    model, card, said = hand_off("llama")
    config = GenerationConfig(use_cache=False, max_new_tokens=6, do_sample=False)
    found = model.generate(**card.inputs(model, new=NEW), generation_config=config)
    assert found[0, LENGTH:].tolist() == said


def test_a_model_config_that_forbids_the_cache() -> None:
    """As trainers leave it; there is no generation_config.json then."""
    model = tiny_model(use_cache=False)
    assert model.config.use_cache is False
    card = capture(model, None, CONTEXT, codec=Raw())
    expected = sequences(model, from_text(), {})
    assert sequences(model, card.inputs(model, new=NEW), {}) == expected
    with torch.no_grad():
        logits = model(**card.inputs(model, new=NEW, new_only=True)).logits
        torch.testing.assert_close(logits, model(IDS).logits[:, len(CONTEXT) :])


class Seen(LogitsProcessor):
    """Which ids a processor gets to see."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.ids.append(input_ids[0].tolist())
        return scores


class Streamed(BaseStreamer):
    """What a streamer gets."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def put(self, value: Any) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        pass


@pytest.mark.parametrize("options", [{}, LOOKUP, {"assistant_model": None}], ids=str)
def test_processors_and_streamers_see_the_same(options: dict[str, Any]) -> None:
    model, card, _ = hand_off("llama")
    if "assistant_model" in options:
        options = {"assistant_model": assistant()}
    seen = []
    for given in (from_text(), card.inputs(model, new=NEW)):
        processor, streamer = Seen(), Streamed()
        more = {"logits_processor": LogitsProcessorList([processor]), "streamer": streamer}
        sequences(model, given, {**options, **more, "repetition_penalty": 1.3})
        seen.append((processor.ids, streamer.ids))
    assert seen[0] == seen[1]
    assert vars(model).get("prepare_inputs_for_generation") is None  # as it was


def lora(model: Any) -> Any:
    targets = ["q_proj", "v_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, target_modules=targets)
    return get_peft_model(model, config).eval()


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lora, torch.compile], ids=["peft", "compiled"])
def test_models_in_wrappers(wrap: Callable[[Any], Any]) -> None:
    torch.manual_seed(1)
    model = wrap(tiny_model(seed=2))
    card = capture(model, None, CONTEXT, codec=Raw())
    for options in ({}, LOOKUP | {"repetition_penalty": 1.4}):
        expected = sequences(model, from_text(), options)
        assert sequences(model, card.inputs(model, new=NEW), options) == expected


def test_whole_ids_in_a_plain_forward() -> None:
    model, card, _ = hand_off("llama")
    with pytest.raises(PromptError, match="29 tokens are read after the 24 in the cache.*new_only"):
        model(**card.inputs(model, new=NEW))


def test_new_ids_in_generate() -> None:
    model, card, _ = hand_off("llama")
    with pytest.raises(PromptError, match="new_only=True, which is for a plain forward"):
        sequences(model, card.inputs(model, new=NEW, new_only=True), {})


@pytest.mark.parametrize("count", range(1, 60, 7))
def test_new_ids_beside_the_cache_alone(count: int) -> None:
    """Without the mask that inject gives, transformers reads some of them, or crashes."""
    model, card, _ = hand_off("llama")
    new = some_ids(count, seed=2)
    cache = card.inputs(model, new=new)["past_key_values"]
    with pytest.raises((PromptError, IndexError, RuntimeError, ValueError)):
        sequences(model, {"input_ids": torch.tensor([new]), "past_key_values": cache}, {})


@pytest.mark.parametrize("count", [1, 6, 20, 28, 40])
def test_the_same_arguments_twice(count: int) -> None:
    model, card, _ = hand_off("llama")
    given = card.inputs(model, new=NEW)
    sequences(model, given, {"max_new_tokens": count})
    with pytest.raises((PromptError, IndexError, RuntimeError, ValueError)):
        sequences(model, given, {})


def test_a_cache_goes_on_from_its_own_text() -> None:
    """As `transformers` has it: all ids so far, and the cache of the call before."""
    model, card, _ = hand_off("llama")
    given = card.inputs(model, new=NEW)
    first = model.generate(**given, max_new_tokens=4, do_sample=False)
    whole = torch.cat([first, torch.tensor([NEW])], dim=1)
    cache = given["past_key_values"]
    found = model.generate(
        input_ids=whole, past_key_values=cache, max_new_tokens=4, do_sample=False
    )
    expected = model.generate(input_ids=whole, max_new_tokens=4, do_sample=False)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("more", [{}, {"kv_format": "bfloat16"}, {"kv_format": "codes"}], ids=str)
@pytest.mark.parametrize("inside", [(True, False), (False, True), (True, True)], ids=str)
def test_inference_mode_inside_and_outside(inside: tuple[bool, bool], more: dict[str, Any]) -> None:
    """Injected in inference mode or not, read on in it and out of it."""
    model, _, _ = hand_off("mistral")
    card = capture(model, None, CONTEXT)
    torch.manual_seed(0)
    expected = sequences(model, card.inputs(model, new=NEW, **more), {"max_new_tokens": 12})
    with torch.inference_mode(inside[0]):
        given = card.inputs(model, new=NEW, **more)
    with torch.inference_mode(inside[1]):
        found = model.generate(**given, max_new_tokens=6, do_sample=False)
    with torch.no_grad():
        found = model.generate(
            input_ids=found,
            past_key_values=given["past_key_values"],
            max_new_tokens=6,
            do_sample=False,
        )
    assert found.tolist() == expected


def test_a_model_that_changes_before_it_generates() -> None:
    model = tiny_model(seed=3)
    given = capture(model, None, CONTEXT, codec=Raw()).inputs(model, new=NEW)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1.0
    with pytest.raises(QKVShareError, match="belongs to another model: weights"):
        sequences(model, given, {})
