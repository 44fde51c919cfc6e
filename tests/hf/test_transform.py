"""The transform codec from calibration to the next agent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qkvshare import CacheCard, Transform, capture, capture_cache
from qkvshare.card.errors import BudgetError, ProfileError
from qkvshare.hf.calibrate.calibrate import calibrate
from qkvshare.profile import Profile

from ..conftest import FAMILIES, some_ids, tiny_model

CONTEXT, NEW = some_ids(150), some_ids(5, seed=1)
_profiles: dict[str, Profile] = {}


def profile_of(family: str) -> Profile:
    if family not in _profiles:
        texts = [some_ids(120, seed=3), some_ids(100, seed=4)]
        _profiles[family] = calibrate(tiny_model(family), texts, 20)
    return _profiles[family]


def distance(model: object, card: CacheCard) -> float:
    """KL in nats from the distributions without hand-off."""
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([CONTEXT + NEW])).logits[0, -len(NEW) :]
        found = model(**card.inputs(model, new=NEW, new_only=True)).logits[0]
    p, q = whole.log_softmax(-1), found.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_quality_grows_with_the_budget(family: str, tmp_path: Path) -> None:
    model, codec = tiny_model(family), Transform.of(profile_of(family))
    found = []
    for step in (64, -64, -512):
        near = Transform(codec.profile, codec.basis.reference + step)
        card = capture(model, None, CONTEXT, codec=near)
        found.append(distance(model, CacheCard.load(card.save(tmp_path / "card"))))
    assert found[0] > found[1] > found[2]
    assert found[2] < 1e-3


@pytest.mark.parametrize("budget", [3.0, 5.0, 8.0])
def test_a_card_has_its_budget(budget: float) -> None:
    codec = Transform.of(profile_of("llama"))
    card = capture(tiny_model(), None, CONTEXT, codec=codec, bits=budget)
    assert 0.95 * budget < card.bits_per_value <= budget


def test_a_hop_keeps_what_was_before() -> None:
    model = tiny_model()
    first = capture(model, None, CONTEXT, codec=Transform.of(profile_of("llama")))
    out = first.inputs(model, new=NEW, new_only=True)
    with torch.no_grad():
        model(**out)
    second = capture_cache(model, out["past_key_values"], CONTEXT + NEW)
    assert [at.codec for at in second.manifest.segments] == 2 * [first.manifest.segments[0].codec]
    for layer in range(3):
        assert second.blob(layer, 0).tobytes() == first.blob(layer, 0).tobytes()
    with torch.no_grad():
        model(**second.inputs(model, new=some_ids(3), new_only=True))


def test_without_a_profile_calibrate_is_named() -> None:
    with pytest.raises(ProfileError, match="qkvshare calibrate"):
        capture(tiny_model(seed=5), None, CONTEXT, codec=Transform())


def test_a_profile_of_another_model_is_refused() -> None:
    codec = Transform.of(profile_of("qwen3"))
    with pytest.raises(ProfileError, match="Run qkvshare calibrate with this model"):
        capture(tiny_model(), None, CONTEXT, codec=codec)


def test_a_budget_below_the_header_is_refused() -> None:
    codec = Transform.of(profile_of("llama"))
    with pytest.raises(BudgetError, match="cannot be met"):
        capture(tiny_model(), None, CONTEXT, codec=codec, bits=0.1)


def test_the_profile_at_hand_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, profile = tiny_model(), profile_of("llama")
    monkeypatch.setenv("QKVSHARE_PROFILES", str(tmp_path))
    profile.save(tmp_path / f"{profile.digest}.safetensors")
    card = capture(model, None, CONTEXT, codec=Transform())
    assert card.manifest.segments[0].codec.profile == profile.digest


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_contexts_of_a_few_tokens(tokens: int) -> None:
    model = tiny_model()
    codec = Transform(profile_of("llama").keep(), refinements=1)
    card = capture(model, None, CONTEXT[:tokens], codec=codec)
    with torch.no_grad():
        model(**card.inputs(model, new=NEW, new_only=True))
