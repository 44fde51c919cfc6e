"""Anchors: how parts change behind a prompt, learnt from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from qkvshare import Raw, Span, capture, capture_cache, compose
from qkvshare.card.container import FileTensors
from qkvshare.card.errors import CaptureError, IdentityError, ProfileError, PromptError
from qkvshare.hf.cache.observe import observe
from qkvshare.hf.compose.anchors import Anchors
from qkvshare.hf.compose.repairs import All, Anchored, Nothing
from qkvshare.hf.model.rope import Rope

from ...conftest import some_ids, tiny_model
from ...models import tiny
from .test_compose import BEFORE, NEW, composition_of, error, logits, said

DONOR = some_ids(6, seed=30)


def cards_of(model: Any, *seeds: int) -> list[Span]:
    """Parts that a donor has read behind its own prompt."""
    contexts = [[*DONOR, *some_ids(25 + at, seed=at)] for at in seeds]
    return [Span(capture(model, None, ids, codec=Raw()), len(DONOR)) for ids in contexts]


@pytest.fixture(scope="module")
def learnt(llama: Any) -> Anchors:
    return Anchors.learn(llama, [[BEFORE, *cards_of(llama, at, at + 1), NEW] for at in (40, 50)])


@pytest.mark.parametrize("name", ["llama", "stablelm", "gemma3_text", "gpt_oss"])
def test_a_part_that_was_learnt_comes_out_right_on_average(name: str) -> None:
    """Anchors of one example are the mean change of its own parts, keys before RoPE."""
    model = tiny_model() if name == "llama" else tiny.tiny_model(name)
    before, donor, new, *texts = (tiny.some_ids(model, 4, seed=at) for at in range(5))
    contexts = [[*donor, *text] for text in texts]
    parts = [before, *(Span(capture(model, None, ids, codec=Raw()), 4) for ids in contexts), new]
    anchors = Anchors.learn(model, [parts])
    found, dense = composition_of(model, parts), composition_of(model, parts)
    Anchored(anchors, Nothing()).repair(found)
    All().repair(dense)
    rope = Rope(model, observe(model).numbers)
    for number, (mine, right) in enumerate(zip(found.buffers, dense.buffers, strict=True)):
        for at in (range(4, 8), range(8, 12)):
            keys = [
                rope.unrotate(number, layer.keys[:, at.start : at.stop], at).mean(1)
                for layer in (mine, right)
            ]
            values = [layer.values[:, at.start : at.stop].mean(1) for layer in (mine, right)]
            assert torch.allclose(*keys, atol=1e-5)
            assert torch.allclose(*values, atol=1e-5)


def test_several_examples_count_by_their_tokens(llama: Any) -> None:
    """Shifts of each alone are those of both, weighted by the tokens of the slot."""
    examples = [[BEFORE, *cards_of(llama, at, at + 9), NEW] for at in (1, 30)]
    both, *each = (Anchors.learn(llama, some) for some in (examples, examples[:1], examples[1:]))
    for slot in range(2):
        tokens = [len(parts[1 + slot]) for parts in examples]
        for found, *alone in zip(*(at.slots[slot] for at in (both, *each)), strict=True):
            for name in ("keys", "values"):
                parts = [getattr(one, name) * n for one, n in zip(alone, tokens, strict=True)]
                expected = torch.stack(parts).sum(0) / sum(tokens)
                assert torch.allclose(getattr(found, name), expected, atol=1e-5)


def test_what_is_repaired_then_is_right(llama: Any, learnt: Anchors) -> None:
    parts = [BEFORE, *cards_of(llama, 60, 61), NEW]
    ids = [*BEFORE, *(token for part in parts[1:3] for token in part.token_ids.tolist()), *NEW]
    expected = logits(llama, ids, len(NEW))
    assert error(said(llama, parts, repair=Anchored(learnt, All())), expected) < 1e-5
    assert compose(llama, parts, repair=Anchored(learnt)).repaired == 8  # by `First`


def test_what_is_exact_is_not_shifted(llama: Any) -> None:
    (part,) = cards_of(llama, 70)
    first = [part.card, *cards_of(llama, 71), NEW]
    anchors = Anchors.learn(llama, [first])
    found, plain = composition_of(llama, first), composition_of(llama, first)
    anchors.shift(found)
    exact = part.card.tokens
    for mine, other in zip(found.buffers, plain.buffers, strict=True):
        assert torch.equal(mine.keys[:, :exact], other.keys[:, :exact])
    assert not torch.equal(found.buffers[-1].keys, plain.buffers[-1].keys)


def test_anchors_for_something_else_are_refused(llama: Any, learnt: Anchors) -> None:
    one, two = cards_of(llama, 60, 61)
    for parts, why in (
        ([NEW, one, two, NEW], "another prompt"),
        ([BEFORE, one, NEW], "for 2 parts.* has 1"),
        ([BEFORE, one, Span(two.card, 3), NEW], "begin with other tokens"),
    ):
        with pytest.raises(PromptError, match=why):
            compose(llama, parts, repair=Anchored(learnt))
    with pytest.raises(PromptError, match="no example"):
        Anchors.learn(llama, [])
    with pytest.raises(PromptError, match="another prompt"):
        Anchors.learn(llama, [[BEFORE, one, two, NEW], [NEW, one, two, NEW]])
    other = tiny_model(seed=9)
    with pytest.raises(IdentityError):
        compose(other, [BEFORE, *cards_of(other, 60, 61), NEW], repair=Anchored(learnt))


def test_a_file_gives_them_back(llama: Any, learnt: Anchors, tmp_path: Path) -> None:
    path = learnt.save(tmp_path / "auditor.anchors")
    parts = [BEFORE, *cards_of(llama, 60, 61), NEW]
    expected = said(llama, parts, repair=Anchored(learnt))
    assert torch.equal(said(llama, parts, repair=Anchored(Anchors.load(path, llama))), expected)
    with pytest.raises(IdentityError):
        Anchors.load(path, tiny_model(seed=9))


def test_a_wrong_file_is_refused(llama: Any, learnt: Anchors, tmp_path: Path) -> None:
    path = learnt.save(tmp_path / "auditor.anchors")
    metadata = {"format": "qkvshare-anchors-1", "behind": "{}"}
    arrays = load_file(path)
    name = "values.0001.0002"
    for change in (
        lambda: path.write_bytes(path.read_bytes()[:-7]),
        lambda: save_file(arrays, path, metadata=metadata),
        lambda: save_file(arrays, path, metadata={"format": "another"}),
        lambda: rewrite(path, learnt, {name: arrays[name] * np.float32(np.nan)}),
        lambda: rewrite(path, learnt, {name: arrays[name].T.copy()}),
        lambda: rewrite(path, learnt, {name: arrays[name].astype(np.int32)}),
        lambda: rewrite(path, learnt, {name: None}),
        path.unlink,
    ):
        learnt.save(path)
        change()
        with pytest.raises(ProfileError, match="auditor"):
            Anchors.load(path, llama)


def rewrite(path: Path, learnt: Anchors, changed: dict[str, Any]) -> None:
    """The file with other arrays."""
    metadata = FileTensors(path).metadata
    arrays = {**load_file(path), **changed}
    save_file({k: v for k, v in arrays.items() if v is not None}, path, metadata=metadata)


def test_a_card_of_the_parts_is_still_refused(llama: Any, learnt: Anchors) -> None:
    """Anchored compositions are approximate like any other."""
    parts = [BEFORE, *cards_of(llama, 60, 61), NEW]
    composed = compose(llama, parts, repair=Anchored(learnt))
    cache = composed.inputs["past_key_values"]
    with pytest.raises(CaptureError, match="composed"):
        capture_cache(llama, cache, composed.inputs["input_ids"][0, : cache.get_seq_length()])
