"""Compiled kernels are machine code in a pickle: they are loaded only from where nobody else
could have put them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qkvshare.kernels import private_folder
from qkvshare.kernels.private_folder import require_private

pytestmark = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")


@pytest.fixture(params=["022", "002"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(int(request.param, 8))
    yield
    os.umask(before)


def test_made_for_the_user_alone_whatever_the_umask(tmp_path: Path, umask: None) -> None:
    folder = require_private(tmp_path / "a" / "b")
    for at in (folder, folder.parent):
        assert at.stat().st_mode & 0o777 == 0o700
    (folder / "kernel.nbi").write_bytes(b"")
    assert require_private(folder) == folder
    (tmp_path / "c").mkdir()
    assert require_private(tmp_path / "c").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_folder_that_others_can_write_to(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "kernel.nbi").write_bytes(b"")
    folder.chmod(mode)
    with pytest.raises(PermissionError, match=f"has mode {mode:o}, so others can write to it"):
        require_private(folder)


def test_folder_in_one_that_others_can_write_to(tmp_path: Path) -> None:
    above = tmp_path / "shared"
    (above / "kernels").mkdir(parents=True)
    above.chmod(0o777)
    with pytest.raises(PermissionError, match="shared has mode 777"):
        require_private(above / "kernels")
    above.chmod(0o1777)  # as /tmp
    require_private(above / "kernels")


def test_file_that_others_can_write_to(tmp_path: Path) -> None:
    file = tmp_path / "kernel.nbi"
    file.write_bytes(b"")
    file.chmod(0o666)
    tmp_path.chmod(0o755)
    with pytest.raises(PermissionError, match="kernel.nbi has mode 666"):
        require_private(tmp_path)
    tmp_path.chmod(0o700)
    require_private(tmp_path)


def test_folder_or_file_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernel.nbi").write_bytes(b"")
    me = os.geteuid()
    monkeypatch.setattr(private_folder.os, "geteuid", lambda: me + 1)
    if me == 0:  # root's are taken from everybody
        os.chown(tmp_path / "kernel.nbi", 4321, 4321)
    with pytest.raises(PermissionError, match="belongs to user"):
        require_private(tmp_path)


def test_kernels_are_kept_elsewhere_than_in_a_shared_folder(tmp_path: Path) -> None:
    """Nothing in it is loaded, and nothing is written to it."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    (shared / "x").write_bytes(b"")
    shared.chmod(0o777)
    script = (
        "from qkvshare.kernels.compiling import kernel\n"
        "from numba import config\n"
        "def double(x): return 2 * x\n"
        "made = kernel(double)\n"
        "assert made(21) == 42\n"
        "print(made.stats.cache_path, config.CACHE_DIR)\n"
    )
    file = tmp_path / "script.py"
    file.write_text(script)
    given = {"NUMBA_CACHE_DIR": str(shared), "XDG_CACHE_HOME": str(own)}
    done = subprocess.run(
        [sys.executable, str(file)], env=os.environ | given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kept, chosen = done.stdout.split()
    assert kept.startswith(str(own / "qkvshare" / "kernels"))
    assert chosen == str(shared)
    assert list(Path(kept).glob("*.nbi"))
    assert not [at for at in shared.rglob("*") if at.is_file() and at.name != "x"]
    assert "compiled kernels are kept in" in done.stderr
