"""Every verb, given what nobody should give it; see `odd`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from qkvshare import CacheCard
from qkvshare.cli.app import app

from ..conftest import tiny_tokenizer
from .odd import MODEL, TEXT, commands, complaint, place, require_refusals

__all__ = ["place"]

# Each verb with what it needs; the files are made in `place`.
VERBS: dict[str, dict[str, str]] = {
    "demo": {},
    "check": MODEL,
    "capture": {**MODEL, "prompt": "x", "output": "new"},
    "resume": {**MODEL, "card": "a.card"},
    "inspect": {"card": "a.card"},
    "verify": {**MODEL, "card": "a.card"},
    "trim": {"card": "a.card", "output": "new", "bits": "3"},
    "calibrate": {**TEXT, "output": "new"},
    "serve": {**MODEL, "root": "store"},
    "mcp": {**MODEL, "root": "store"},
    "key new": {"path": "new"},
    "key signer": {"path": "new"},
    "store put": {"card": "a.card", "root": "store"},
    "store get": {"digest": "", "output": "new", "root": "store"},  # of any card in it
    "store ls": {"root": "store"},
    "store rm": {"digest": "", "root": "store"},
    "store gc": {"root": "store"},
    "store stats": {"root": "store"},
    "store audit": {"root": "store"},
}

COMMAND = get_command(app)
COMMANDS = dict(commands(COMMAND))


@pytest.fixture
def command() -> Any:
    return COMMAND


def test_every_verb_is_here() -> None:
    assert set(COMMANDS) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_odd_inputs(verb: str, run: Any, place: Path) -> None:
    require_refusals(COMMANDS[verb], verb, VERBS[verb], run, place)


# --- with a model -------------------------------------------------------------------------------


def test_text_is_captured_as_it_is(run: Any, llama_folder: Path, place: Path) -> None:
    """A byte order mark is no token, and a newline of two bytes is no other."""
    text = "one\r\ntwo\rthree\n"
    Path("marked").write_bytes(b"\xef\xbb\xbf" + text.encode())
    code, _, err = run(
        *("capture", "-m", llama_folder, "--text", "marked", "-o", "new", "--codec", "raw")
    )
    assert code == 0, err
    assert CacheCard.load("new").token_ids.tolist() == tiny_tokenizer()(text)["input_ids"]


def _config(**changed: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").write_text("[]"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "cannot be loaded"),
        (_config(model_type="none"), "cannot be loaded"),
        (_config(num_key_value_heads=4), "cannot be loaded"),
        (_config(num_hidden_layers=5), "lacks 18 weights that its config asks for"),
        (lambda folder: os.truncate(folder / "model.safetensors", 100), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "cannot be loaded"),
    ],
)
def test_damaged_models(
    run: Any, llama_folder: Path, place: Path, damage: Callable[[Path], object], said: str
) -> None:
    """Weights that are not there are not made up either."""
    folder = place / "model"
    shutil.copytree(llama_folder, folder)
    damage(folder)
    code, found = complaint(lambda: run("verify", "a.card", "-m", folder))
    assert code == 1, found
    assert f"ModelNotFoundError: the model '{folder}' {said}" in found
