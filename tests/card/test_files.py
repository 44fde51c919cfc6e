"""Files that a user names: only regular files are replaced, and text is read as it is."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.evals.results import write_rows
from qkvshare.card import Key, Signer
from qkvshare.card.errors import CaptureError, OutputError, QKVShareError
from qkvshare.card.files import read_text, require_output
from qkvshare.profile import Profile

from ..cards import make_card

WRITERS: dict[str, Callable[[Path], Any]] = {
    "card": lambda path: make_card().save(path),
    "sealed card": lambda path: make_card().save(path, key=Key(bytes(32))),
    "profile": lambda path: Profile("a" * 64, {"x": np.zeros(1)}).save(path),
    "results": lambda path: write_rows(str(path), [{"n": 1}]),
    "key": lambda path: Key(bytes(32)).save(path),
    "signer": lambda path: Signer.generate().save(path),
}
REPLACING = [name for name in WRITERS if name not in ("key", "signer")]  # these two never do


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except OSError as error:
        pytest.skip(f"no device node can be made here: {error}")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


ODD: dict[str, Callable[[Path], None]] = {
    "folder": folder,
    "pipe": os.mkfifo,
    "device": device,
    "socket": unix_socket,
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("writer", WRITERS)
def test_only_regular_files_are_replaced(writer: str, kind: str, tmp_path: Path) -> None:
    odd, link = tmp_path / "odd", tmp_path / "link"
    ODD[kind](odd)
    link.symlink_to(odd)
    before = odd.lstat()
    for path in (odd, link):
        with pytest.raises(QKVShareError, match=f"is a {kind}; expected|exists and is left"):
            WRITERS[writer](path)
        with pytest.raises(OutputError, match=f"is a {kind}; expected"):
            require_output(path)
    after = odd.lstat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "odd"]


@pytest.mark.parametrize("writer", REPLACING)
def test_a_symlink_is_written_through(writer: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file, link = tmp_path / "there" / "file", tmp_path / "link"
    link.symlink_to(Path("there", "file"))
    WRITERS[writer](link)  # makes the target
    first = file.stat()
    WRITERS[writer](link)  # replaces it
    assert link.is_symlink()
    assert file.stat().st_ino != first.st_ino
    assert os.listdir(tmp_path / "there") == ["file"]
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(QKVShareError, match="Too many levels of symbolic links"):
        WRITERS[writer](loop)
    assert loop.is_symlink()


@pytest.mark.parametrize("writer", WRITERS)
def test_the_longest_name(writer: str, tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    WRITERS[writer](path)
    assert os.listdir(tmp_path) == [path.name]
    longer = tmp_path / ("n" * 256)
    with pytest.raises(QKVShareError, match="File name too long"):
        WRITERS[writer](longer)
    with pytest.raises(OutputError, match="File name too long"):
        require_output(longer)


@pytest.mark.parametrize("writer", REPLACING)
def test_who_may_read_what_is_written(writer: str, tmp_path: Path) -> None:
    """A card is as secret as its prompt; what else is written is as the umask says."""
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        WRITERS[writer](path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == (0o600 if "card" in writer else 0o640)


def test_names_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "x", tmp_path / "file" / "x", Path("a\0b"), Path("\ud83d")):
        with pytest.raises(OutputError, match="cannot be written"):
            require_output(path)
    with pytest.raises(OutputError, match="is a folder"):
        require_output(Path(""))


def test_half_a_key_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QKVShareError, match="No space left"):
        Key(bytes(32)).save(tmp_path / "key")
    assert os.listdir(tmp_path) == []


def test_text_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("\ufeffa\r\nb\rc\n\ufeff".encode())
    assert read_text(path, CaptureError) == "a\r\nb\rc\n\ufeff"
    path.write_bytes("\ufeff".encode())
    assert read_text(path, CaptureError) == ""
    for content in (b"caf\xe9", "text".encode("utf-16"), b"\xed\xa0\xbd"):
        path.write_bytes(content)
        with pytest.raises(CaptureError, match="cannot be read as UTF-8 text"):
            read_text(path, CaptureError)


def test_text_comes_from_files_and_pipes_alone(tmp_path: Path) -> None:
    for kind in ("folder", "device", "socket"):
        ODD[kind](tmp_path / kind)
        with pytest.raises(CaptureError, match=f"is a {kind}; expected a text file"):
            read_text(tmp_path / kind, CaptureError)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"\xef\xbb\xbfhi\r\n",))
    writer.start()
    assert read_text(tmp_path / "pipe", CaptureError) == "hi\r\n"
    writer.join()
