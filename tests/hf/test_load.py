"""Models by name: folders, GGUF files, and those that packages carry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qkvshare.card.errors import ModelNotFoundError
from qkvshare.hf.model.load import FETCHED, load_model

from ..conftest import tiny_model
from ..gguf_file import write_gguf


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QKVSHARE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gguf_file_is_converted_once(cache: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "mine.gguf", tiny_model())
    model, tokenizer = load_model(str(tmp_path / "mine.gguf"))
    (folder,) = cache.iterdir()
    assert folder.name.startswith("mine-")
    assert model.dtype == torch.bfloat16
    assert tokenizer("AB", add_special_tokens=False)["input_ids"] == [35, 36]
    made = (folder / "model.safetensors").stat().st_mtime_ns
    again, _ = load_model(str(tmp_path / "mine.gguf"))
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_another_file_of_the_same_name_is_another_model(cache: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_gguf(tmp_path / "mine.gguf", tiny_model(seed=seed))
        load_model(str(tmp_path / "mine.gguf"))
    assert len(list(cache.iterdir())) == 2


def test_two_processes_at_once(cache: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "mine.gguf", tiny_model())
    script = "import sys; from qkvshare.hf.model.load import load_model; load_model(sys.argv[1])"
    command = [sys.executable, "-c", script, str(tmp_path / "mine.gguf")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    assert [at.name.startswith("mine-") for at in cache.iterdir()] == [True]


def test_what_is_no_model_file(cache: Path, tmp_path: Path) -> None:
    for name, match in (("weights.bin", "no folder and no GGUF file"), ("a.gguf", "cannot be con")):
        (tmp_path / name).write_bytes(b"GGUF, but not really")
        with pytest.raises(ModelNotFoundError, match=match):
            load_model(str(tmp_path / name))
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("name", FETCHED)
def test_a_model_that_was_not_fetched(cache: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"python -m benchmarks fetch {name}"):
        load_model(name)
