"""How a command line ends when its output is closed or full, and on Ctrl-C."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qkvshare.cli.main import main

from ..cards import make_card

VERB = [sys.executable, "-m", "qkvshare", "inspect"]


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return make_card().save(tmp_path / "a.card")


def test_a_reader_that_has_seen_enough(card: Path) -> None:
    """As in ``qkvshare inspect a.card | head -0``."""
    reading, writing = os.pipe()
    os.close(reading)
    asked = [*VERB, card, "--json", "-"]
    done = subprocess.run(asked, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_output_that_is_full(card: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*VERB, card], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: [Errno 28] No space left on device")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(errno.EPIPE, "closed"), 1, ""),
        (PermissionError(errno.EACCES, "Permission denied", "x\ny"), 1, "error: [Errno 13] Perm"),
        (MemoryError(), 1, "error: there is not enough memory\n"),
        (MemoryError("Unable to allocate 9 TiB"), 1, "error: there is not enough memory: Unable"),
    ],
)
@pytest.mark.parametrize("where", ["qkvshare.card.CacheCard.load", "qkvshare.cli.app.app"])
def test_what_ends_a_verb(
    run: Any, where: str, raised: BaseException, code: int, said: str, monkeypatch: Any
) -> None:
    def end(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(where, end)
    found, _, err = run("inspect", "a.card")
    assert found == code
    assert err.startswith(said)
    assert err.count("\n") == bool(said)


def test_ctrl_c(tmp_path: Path) -> None:
    """While it waits for text from a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    asked = ["capture", "-m", "none", "--text", tmp_path / "pipe", "-o", tmp_path / "card"]
    waiting = subprocess.Popen(
        [sys.executable, "-m", "qkvshare", *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that started the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    handle = os.open(tmp_path / "pipe", os.O_WRONLY)  # opens when it is being read
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=60)
    os.close(handle)
    assert (waiting.returncode, out, err) == (130, b"", b"")


def test_a_terminal_without_unicode(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["qkvshare", "inspect", str(card)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert rb"2\xd78" in raw.getvalue()  # 2×8
