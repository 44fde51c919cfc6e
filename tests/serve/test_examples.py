"""The frameworks' examples, against a server of the embedded model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qkvshare.hf.session.session import Session
from qkvshare.serve.access import Access, Stores
from qkvshare.serve.limits import Limits
from qkvshare.serve.service import Service

from .server import serving_service

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def address(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    stores = Stores(tmp_path_factory.mktemp("cards"), Access({}))
    service = Service(Session(*smollm2), "smollm2-135m", stores, Limits())
    with serving_service(service) as address:
        yield address


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai_client", r"walnut shells[\s\S]*\b15\d\d of 15\d\d tokens cached"),
        ("two_roles", r"1\d\d\d composed, 4 repaired[\s\S]*walnut shells"),
        ("langgraph_handoff", r"\b14\d\d tokens from a card[\s\S]*walnut shells"),
        ("smolagents_handoff", r"reader: 0 of 14\d\d tokens[\s\S]*writer: 14\d\d of 15\d\d"),
    ],
)
def test_examples_hand_on(address: str, name: str, expected: str) -> None:
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "QKVSHARE_URL": f"{address}/v1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(expected, done.stdout), done.stdout
