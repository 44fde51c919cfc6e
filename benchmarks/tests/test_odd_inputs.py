"""Every verb, given what nobody should give it; see `tests.cli.odd`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from benchmarks.cli.app import app
from tests.cli.odd import DATA, TEXT, commands, place, require_refusals

__all__ = ["place"]

VERBS: dict[str, dict[str, str]] = {
    "fidelity": TEXT,
    "recall": TEXT,
    "relay": DATA,
    "gsm8k": DATA,
    "compose": TEXT,
    "capture": TEXT,
    "codecs": TEXT,
    "kernels": {},
    "store": {},
    "ttft": TEXT,
    "train": {**TEXT, "output": "new"},
}

COMMAND = get_command(app)
COMMANDS = dict(commands(COMMAND))


@pytest.fixture
def command() -> Any:
    return COMMAND


def test_every_verb_is_here() -> None:
    # What is asked of fetch is a name, see test_models.
    assert set(COMMANDS) == {*VERBS, "fetch"}


@pytest.mark.parametrize("verb", VERBS)
def test_odd_inputs(verb: str, run: Any, place: Path) -> None:
    require_refusals(COMMANDS[verb], verb, VERBS[verb], run, place)
