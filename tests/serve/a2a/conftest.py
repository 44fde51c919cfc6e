"""What tests of agents have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkvshare.hf.session.session import Session
from qkvshare.store import Store

from .agents import tiny_resident


@pytest.fixture(scope="module")
def session() -> Session:
    return tiny_resident()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cards")
