"""A profile: round trip, and what damaged ones get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qkvshare.card.errors import ProfileError
from qkvshare.profile import Profile


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "profile"
    Profile("a" * 64, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}).save(path)
    back = Profile.load(path)
    assert back.weights == "a" * 64
    assert np.array_equal(back.arrays["x"], np.arange(6).reshape(2, 3))
    assert [file.name for file in tmp_path.iterdir()] == ["profile"]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        Profile.load(tmp_path / "none")
    (tmp_path / "text").write_text("no profile")
    with pytest.raises(ProfileError, match="cannot be read"):
        Profile.load(tmp_path / "text")
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "other")
    with pytest.raises(ProfileError, match="format None"):
        Profile.load(tmp_path / "other")
    with pytest.raises(ProfileError, match="cannot be written"):
        Profile("a" * 64, {}).save(tmp_path / "no folder" / "profile")
