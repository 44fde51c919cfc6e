"""What README shows must run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qkvshare.hf.model.load import embedded_folder

README = Path(__file__).parents[1] / "README.md"


def test_python_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.S))
    local, hub = str(embedded_folder()), "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub in code
    monkeypatch.chdir(tmp_path)
    Path("manual.txt").write_text("The ink is made from walnut shells. It dries in an hour.")
    exec(code.replace(hub, local), {})
    assert "walnut shells" in capsys.readouterr().out


def test_every_verb_is_shown() -> None:
    shown = re.findall(
        r"^(?:qkvshare|python -m benchmarks) (?:(?:store|key) )?\w+", README.read_text(), re.M
    )
    benchmarks = "fidelity", "recall", "relay", "gsm8k", "capture", "codecs", "kernels", "ttft"
    assert set(shown) == {
        *("qkvshare capture", "qkvshare inspect", "qkvshare verify", "qkvshare resume"),
        *("qkvshare calibrate", "qkvshare trim", "qkvshare store put", "qkvshare store ls"),
        *("qkvshare key new", "qkvshare serve", "qkvshare mcp"),
        *(f"python -m benchmarks {verb}" for verb in benchmarks),
    }
