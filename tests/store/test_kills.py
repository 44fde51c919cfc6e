"""Writers killed at any moment lose nothing that was acknowledged, and leave nothing half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.store.soak import soak

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@pytest.mark.slow
def test_some_kills(tmp_path: Path) -> None:
    report = soak(tmp_path, kills=30)
    assert report.ok, f"{report} {report.missing[:3]} {report.failures[:3]}"
    assert report.acknowledged > 10


@pytest.mark.nightly
def test_two_thousand_kills(tmp_path: Path) -> None:
    report = soak(tmp_path, kills=2000, seed=1)
    assert report.ok, f"{report} {report.missing[:3]} {report.failures[:3]}"
