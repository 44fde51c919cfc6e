"""`save_cache` and `load_cache`: a cache in a file, and back in another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import qkvshare
from qkvshare import Packed, capture, load_cache, save_cache

from ..conftest import FAMILIES, greedy_from_text, some_ids, tiny_model

CONTEXT, NEW = some_ids(40), some_ids(7, seed=1)

_OTHER_PROCESS = """
import sys, torch, transformers, qkvshare
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
cache, ids = qkvshare.load_cache(sys.argv[2], model)
whole = torch.cat([ids, torch.tensor([[int(at) for at in sys.argv[3].split(",")]])], 1)
out = model.generate(whole, past_key_values=cache, max_new_tokens=8, do_sample=False)
print(out[0, whole.shape[1]:].tolist())
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([CONTEXT]), use_cache=True).past_key_values
    path = save_cache(cache, CONTEXT, tmp_path / "a.cache", model)
    back, ids = load_cache(path, model)
    assert ids.tolist() == [CONTEXT]
    assert back.get_seq_length() == cache.get_seq_length() == len(CONTEXT)
    for ours, theirs in zip(back.layers, cache.layers, strict=True):
        kept = ours.keys.shape[2]
        assert torch.equal(ours.keys, theirs.keys[:, :, -kept:])
        assert torch.equal(ours.values, theirs.values[:, :, -kept:])
    new = torch.tensor([NEW])
    with torch.no_grad():
        one, two = (model(input_ids=new, past_key_values=at).logits for at in (back, cache))
    assert torch.equal(one, two)


@pytest.mark.slow
def test_another_process_goes_on(llama: Any, llama_folder: Path, tmp_path: Path) -> None:
    inputs = torch.tensor([CONTEXT])
    out = llama.generate(inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    # The last sampled token is not in the cache yet.
    path = save_cache(out.past_key_values, out.sequences, tmp_path / "a.cache", llama)
    command = [sys.executable, "-c", _OTHER_PROCESS, llama_folder, path, ",".join(map(str, NEW))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    whole = out.sequences[0].tolist() + NEW
    assert eval(said) == greedy_from_text(llama, whole)[:8]


def test_what_is_refused(llama: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        cache = llama(input_ids=torch.tensor([CONTEXT]), use_cache=True).past_key_values
    with pytest.raises(qkvshare.CaptureError, match="was not made of these token ids"):
        save_cache(cache, some_ids(40, seed=9), tmp_path / "a.cache", llama)
    path = save_cache(cache, CONTEXT, tmp_path / "a.cache", llama)
    with pytest.raises(qkvshare.IdentityError):
        load_cache(path, tiny_model(seed=1))
    lossy = capture(llama, None, CONTEXT, codec=Packed()).save(tmp_path / "lossy.card")
    with pytest.raises(qkvshare.CodecError, match="'packed', which loses something"):
        load_cache(lossy, llama)
    with pytest.raises(qkvshare.CardNotFoundError):
        load_cache(tmp_path / "none", llama)


def test_a_loaded_cache_is_captured_as_any_other(llama: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        cache = llama(input_ids=torch.tensor([CONTEXT]), use_cache=True).past_key_values
    back, ids = load_cache(save_cache(cache, CONTEXT, tmp_path / "a.cache", llama), llama)
    card = qkvshare.capture_cache(llama, back, ids, bits=9)
    assert len(card.manifest.segments) == 1
    assert card.bits_per_value <= 9
