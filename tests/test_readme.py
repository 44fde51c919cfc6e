"""What README and the quickstart show must run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qkvshare.hf.model.load import embedded_folder

from .conftest import tiny_tokenizer
from .models.tiny import tiny_model

ROOT = Path(__file__).parents[1]
TEXT = "The ink is made from walnut shells. It dries in an hour."


def test_the_example_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    local, hub = str(embedded_folder()), "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub in code
    monkeypatch.chdir(tmp_path)
    Path("manual.txt").write_text(TEXT)
    exec(code.replace(hub, local), {})
    assert "walnut shells" in capsys.readouterr().out
    assert Path("answered.card").stat().st_size > Path("manual.card").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_5_text", "deepseek_v3"])
def test_two_processes_run_the_example_on_any_model(name: str, tmp_path: Path) -> None:
    """A hybrid model and one with latent attention; the one half of the example captures."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    hub = "HuggingFaceTB/SmolLM2-135M-Instruct"
    tiny_model(name).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "manual.txt").write_text(TEXT)
    code = code.replace(hub, str(tmp_path / "model"))
    head, sender, receiver = re.split(r"(?m)^(?=card = )", code)
    said = []
    for half in (sender, receiver):
        done = subprocess.run(
            [sys.executable, "-c", head + half],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(done.stdout)
    assert len(said[1].strip()) > 0
    assert (tmp_path / "answered.card").stat().st_size > (tmp_path / "manual.card").stat().st_size


@pytest.mark.slow
def test_the_commands_of_the_quickstart(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text()
    commands = re.findall(r"^qkvshare .*$", page, re.M)
    assert {line.split()[1] for line in commands} == {"capture", "inspect", "verify", "resume"}
    (tmp_path / "manual.txt").write_text(TEXT)
    for line in commands:
        command = [sys.executable, "-m", *shlex.split(line)]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ)
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    assert (tmp_path / "longer.card").exists()
