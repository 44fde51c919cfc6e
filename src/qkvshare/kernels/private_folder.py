"""A folder that nobody but the user can write to, for what a process will run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def require_private(folder: Path) -> Path:
    """``folder``, made if it is not there, with mode 700.

    Raises `OSError` where somebody else owns it, a file in it or a folder above it, or can write
    there.
    """
    folder = Path(os.path.realpath(folder))
    for missing in [at for at in (*folder.parents[::-1], folder) if not at.exists()]:
        missing.mkdir(mode=0o700, exist_ok=True)
    if os.name != "posix":
        return folder
    with os.scandir(folder) as files:
        found = {Path(file.path): file.stat(follow_symlinks=False) for file in files}
    if not found and folder.stat().st_uid == os.geteuid():
        folder.chmod(0o700)  # just made, maybe by another umask
    for above in (folder, *folder.parents):
        _require(above, above.stat(), sticky=above != folder)
    reached = folder.stat().st_mode & 0o077
    for path, file in found.items():
        _require(path, file, reached=bool(reached))
    return folder


def own_folder() -> Path:
    """Where the user's own are, if no other folder is private."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qkvshare" / "kernels"


def _require(path: Path, found: os.stat_result, sticky: bool = False, reached: bool = True) -> None:
    """Raise `PermissionError` where somebody else owns ``path``, or can write there.

    ``sticky``: others may if they cannot rename what is not theirs, as in /tmp. ``reached``:
    whether others can get there at all.
    """
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path} belongs to user {found.st_uid}")
    # A link has all rights; those of what it leads to count.
    writable = reached and found.st_mode & _OTHERS and not stat.S_ISLNK(found.st_mode)
    if writable and not (sticky and found.st_mode & stat.S_ISVTX):
        mode = stat.S_IMODE(found.st_mode)
        raise PermissionError(f"{path} has mode {mode:o}, so others can write to it")
