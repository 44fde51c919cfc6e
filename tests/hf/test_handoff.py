"""The promise: going on from a raw card says exactly what going on without hand-off says."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.codecs import Uniform
from qkvshare import CacheCard, Raw, capture, capture_cache
from qkvshare.card.errors import CaptureError
from qkvshare.codecs import Codec

from ..conftest import FAMILIES, WINDOW, greedy, greedy_from_text, some_ids, tiny_model

CONTEXT, NEW = some_ids(40), some_ids(7, seed=1)

_SECOND_PROCESS = """
import sys, torch
from transformers import AutoModelForCausalLM
from qkvshare import CacheCard
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
new = [int(i) for i in sys.argv[3].split()]
arguments = CacheCard.load(sys.argv[2]).inputs(model, new=new)
count = int(sys.argv[4])
output = model.generate(**arguments, max_new_tokens=count, min_new_tokens=count, do_sample=False)
print(*output[0, arguments["input_ids"].shape[1]:].tolist())
"""


def in_second_process(folder: Path, card: Path, new: list[int], tokens: int) -> list[int]:
    """Greedy continuation from a card in a fresh interpreter."""
    arguments = [str(folder), str(card), " ".join(map(str, new)), str(tokens)]
    done = subprocess.run(
        [sys.executable, "-c", _SECOND_PROCESS, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [int(i) for i in done.stdout.split()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, WINDOW + 1, 40])
@pytest.mark.parametrize("new", [0, 1, 7])
def test_same_text_from_card(family: str, length: int, new: int, tmp_path: Path) -> None:
    model = tiny_model(family)
    context, more = CONTEXT[:length], NEW[:new]
    card = CacheCard.load(capture(model, None, context, codec=Raw()).save(tmp_path / "card"))
    assert greedy(model, **card.inputs(model, new=more)) == greedy_from_text(model, context + more)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_same_text_in_second_process(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "model")
    path = capture(model, None, CONTEXT, codec=Raw()).save(tmp_path / "card")
    said = in_second_process(tmp_path / "model", path, NEW, 16)
    assert said == greedy_from_text(model, CONTEXT + NEW)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_raw_is_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)
    cache = live_cache(model, CONTEXT)
    card = capture_cache(model, cache, CONTEXT, codec=Raw())
    back = card.inputs(model, new=NEW)["past_key_values"]
    for ours, theirs in zip(cache.layers, back.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length() == len(CONTEXT)
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_grouped_and_multi_head(heads: int) -> None:
    model = tiny_model("llama", num_key_value_heads=heads)
    card = capture(model, None, CONTEXT, codec=Raw())
    assert greedy(model, **card.inputs(model, new=NEW)) == greedy_from_text(model, CONTEXT + NEW)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_forward_takes_the_same_arguments(family: str) -> None:
    model = tiny_model(family)
    card = capture(model, None, CONTEXT, codec=Raw())
    with torch.no_grad():
        found = model(**card.inputs(model, new=NEW, new_only=True)).logits
        expected = model(input_ids=torch.tensor([CONTEXT + NEW])).logits[:, len(CONTEXT) :]
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-4)


def test_each_injection_is_a_copy(llama: Any) -> None:
    card = capture(llama, None, CONTEXT, codec=Raw())
    first = greedy(llama, **card.inputs(llama, new=NEW))
    assert greedy(llama, **card.inputs(llama, new=NEW)) == first


def test_beam_search_from_one_card(llama: Any) -> None:
    card = capture(llama, None, CONTEXT, codec=Raw())
    ids = torch.tensor([CONTEXT + NEW])
    beams = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    arguments = card.inputs(llama, new=NEW)
    # generate expands the prompt for its beams, but never a cache that it is given
    arguments["past_key_values"].batch_repeat_interleave(3)
    found = llama.generate(**arguments, **beams)[0, ids.shape[1] :]
    expected = llama.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **beams)
    assert found.tolist() == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("codec", [Raw(), Uniform(2)], ids=str)
def test_hop_after_hop_keeps_old_bytes(family: str, codec: Codec) -> None:
    model = tiny_model(family)
    ids = some_ids(12)
    card = capture(model, None, ids, codec=codec, agent="first")
    for hop in range(1, 4):
        new = some_ids(5, seed=hop)
        arguments = card.inputs(model, new=new, new_only=True)
        with torch.no_grad():
            model(**arguments)
        ids, before = ids + new, card
        cache = arguments["past_key_values"]
        card = capture_cache(model, cache, ids, codec=codec)
        assert card.manifest.segments[:-1] == before.manifest.segments
        assert card.manifest.lineage[-1].parent == before.digest
        assert card.manifest.lineage[-1].hop == hop
        assert all((card.tensors[name] == before.tensors[name]).all() for name in before.tensors)
        assert (card.token_ids == ids).all()
    if codec == Raw():
        assert greedy(model, **card.inputs(model, new=NEW)) == greedy_from_text(model, ids + NEW)


def test_capture_of_an_injected_cache(llama: Any) -> None:
    card = capture(llama, None, CONTEXT, codec=Uniform(3))
    arguments = card.inputs(llama, new=NEW, new_only=True)
    with torch.no_grad():
        llama(**arguments)
    cache = copy.deepcopy(arguments["past_key_values"])  # as people fork caches
    with pytest.raises(CaptureError, match="injected from a card whose token 3 is"):
        capture_cache(llama, cache, [*CONTEXT[:3], 99, *CONTEXT[4:], *NEW])
    with pytest.raises(CaptureError, match="first at token 41"):
        capture_cache(llama, cache, [*CONTEXT, NEW[0], 99, *NEW[2:]])
    appended = capture_cache(llama, cache, CONTEXT + NEW)
    assert appended.manifest.segments[0] == card.manifest.segments[0]
    anew = capture_cache(llama, cache, CONTEXT + NEW, anew=True)
    assert len(anew.manifest.segments) == 1
    cache.crop(-len(NEW) - 2)  # back to a part of the card
    shorter = capture_cache(llama, cache, CONTEXT[:-2])
    assert shorter.manifest.lineage[0].parent is None


def live_cache(model: Any, ids: list[int]) -> Any:
    """What transformers itself holds after reading ``ids``."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
