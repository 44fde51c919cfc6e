"""``qkvshare serve``, and what the deployment files say to it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from qkvshare.cli.serve import serve

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "qkvshare", "serve", *arguments]


@pytest.mark.slow
def test_it_serves_until_it_is_told_to_stop(llama_folder: Path, tmp_path: Path) -> None:
    where = ["-m", str(llama_folder), "--store", str(tmp_path / "cards"), "--port", "0"]
    process = subprocess.Popen(command(*where), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        name = httpx.get(f"{found[0]}/v1/models").json()["data"][0]["id"]
        assert name == llama_folder.name
        body = {"model": name, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi."}]}
        for transfer in ({"keep": True, "agent": "a"}, {"keep": True, "from_agent": "a"}):
            asked = {**body, "kv_transfer_params": transfer}
            answer = httpx.post(f"{found[0]}/v1/chat/completions", json=asked, timeout=60)
            assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--tokens"),
        (["--tokens", "nowhere"], "cannot be read"),
        (["--limit", "much"], "not a size"),
    ],
)
def test_what_it_refuses(tmp_path: Path, arguments: list[str], words: str) -> None:
    """Before the model is loaded."""
    done = subprocess.run(
        command("-m", "none", "--store", str(tmp_path), *arguments), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


@pytest.mark.parametrize(
    "name", ["deploy/qkvshare.service", "deploy/Containerfile", "docs/guide.md"]
)
def test_files_that_start_it_use_options_it_has(name: str) -> None:
    text = (ROOT / name).read_text()
    lines = [line for line in text.splitlines() if re.search(r'qkvshare"?,? "?serve', line)]
    used = {
        option.replace("-", "_") for line in lines for option in re.findall(r"--([a-z-]+)", line)
    }
    known = set(serve.__annotations__) | {"store"}
    assert {"store", "tokens"} <= used <= known
