"""Learned allocators from training to a card."""

from __future__ import annotations

import pytest
import torch

from benchmarks.features import read_features
from benchmarks.learned import ChunkRouter, Controller, Learned
from benchmarks.training import train_allocators
from qkvshare import Packed, capture
from qkvshare.card.errors import ProfileError
from qkvshare.hf.capture.reading import read
from tests.conftest import FAMILIES, some_ids, tiny_model

CONTEXT, NEW = some_ids(150), some_ids(5, seed=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [Controller, ChunkRouter])
def test_from_training_to_card(family: str, kind: type[Learned]) -> None:
    model = tiny_model(family)
    profile = train_allocators(model, [some_ids(120, seed=3), some_ids(100, seed=4)], 20)
    again = train_allocators(model, [some_ids(120, seed=3), some_ids(100, seed=4)], 20)
    for name, array in profile.arrays.items():
        assert (again.arrays[name] == array).all()
    allocator = kind(profile=profile)
    card = capture(model, None, CONTEXT, codec=Packed(allocator=allocator), bits=9.5)
    assert card.manifest.segments[0].allocation.allocator == allocator.name
    assert card.bits_per_value <= 9.5
    model(**card.inputs(model, new=NEW, new_only=True))


def test_features_are_the_models_own() -> None:
    model = tiny_model()
    ids = read(model, CONTEXT).ids
    features = read_features(model, ids)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([CONTEXT]), output_hidden_states=True)
    chances = out.logits[0].softmax(-1)
    entropy = torch.distributions.Categorical(chances).entropy()
    assert torch.allclose(features.signals[:, 0], entropy, atol=1e-4)
    assert torch.allclose(features.signals[:, 1], chances.amax(-1), atol=1e-4)
    middle = out.hidden_states[len(out.hidden_states) // 2][0]
    assert torch.allclose(features.hidden, middle, atol=1e-4)


def test_a_profile_of_another_model_is_refused() -> None:
    profile = train_allocators(tiny_model("qwen3"), [some_ids(60)], 10)
    with pytest.raises(ProfileError, match="Run qkvshare calibrate with this model"):
        capture(tiny_model(), None, CONTEXT, codec=Packed(allocator=Controller(profile)))
