"""Writing a card where there is no room, no permission, or no time left."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qkvshare import CacheCard
from qkvshare.card.errors import CardWriteError

from ..cards import make_card

ROOT = Path(__file__).parents[2]
NOBODY = 65534
# In a process of its own, since limits and privileges cannot be had back.
CHILD = """
import os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.cards import make_card
from qkvshare.card.errors import CardWriteError
card = make_card(runs=(500,))
path = Path(sys.argv[2])
def save():
    try:
        card.save(path)
        print("written")
    except CardWriteError as error:
        print("refused" if f"{path} cannot be written" in str(error) else error)
"""


def in_a_child(script: str, path: Path) -> list[str]:
    """The lines that ``script`` prints after `CHILD`."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD + script, str(ROOT), str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_cards_are_private_files(tmp_path: Path) -> None:
    path = make_card().save(tmp_path / "card")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_folder_that_is_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(CardWriteError, match="cannot be written"):
        make_card().save(tmp_path / "nothing" / "card")
    (tmp_path / "file").write_text("")
    with pytest.raises(CardWriteError, match="cannot be written"):
        make_card().save(tmp_path / "file" / "card")


def test_full_disk_keeps_the_old_card(tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk that fills at any byte of the card."""
    path = make_card().save(tmp_path / "card")
    before, needed = path.read_bytes(), make_card(runs=(500,)).nbytes
    limits = [0, 1, 8, 1000, 4096, needed // 2, needed - 1]
    found = in_a_child(
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"for limit in {limits}:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    save()\n",
        path,
    )
    assert found == ["refused"] * len(limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; mounting takes rights that few have."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_file_system(small_disk: Path) -> None:
    path = make_card().save(small_disk / "card")
    before = path.read_bytes()
    with pytest.raises(CardWriteError, match="cannot be written"):
        make_card(runs=(500,)).save(path)
    assert path.read_bytes() == before
    assert list(small_disk.iterdir()) == [path]
    # what was given up gave its room back
    assert make_card(seed=1).save(path).read_bytes() != before


def test_read_only_file_system(small_disk: Path) -> None:
    path = make_card().save(small_disk / "card")
    before = path.read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CardWriteError, match="Read-only file system"):
        make_card(seed=1).save(path)
    assert path.read_bytes() == before
    assert list(small_disk.iterdir()) == [path]


def test_read_only_folder(tmp_path: Path) -> None:
    """Root may write anywhere, so it steps down, once it is in the folder."""
    path = make_card().save(tmp_path / "card")
    before = path.read_bytes()
    tmp_path.chmod(0o555)
    step_down = f"os.setuid({NOBODY})\n" if os.geteuid() == 0 else ""
    found = in_a_child(f"os.chdir(path.parent); path = Path('card')\n{step_down}save()\n", path)
    tmp_path.chmod(0o700)
    assert found == ["refused"]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_killed_writer_leaves_a_whole_card(tmp_path: Path) -> None:
    """A writer is killed at random moments; what stands under the name is always one whole card."""
    path = tmp_path / "card"
    script = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from tests.cards import make_card\n"
        "cards = [make_card(runs=(2000,), seed=seed) for seed in range(3)]\n"
        "while True:\n"
        "    for card in cards:\n"
        "        card.save(sys.argv[1])\n"
        "    print('round', flush=True)\n"
    )
    whole = {make_card(runs=(2000,), seed=seed).digest for seed in range(3)}
    for delay in (0.01, 0.023, 0.037, 0.05):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(path), str(ROOT)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        card = CacheCard.load(path)
        card.verify()
        assert card.digest in whole
