"""Compile a kernel once, and keep it on disk for all processes.

What is on disk is found by a function's name, and within a process machine code is told apart by
name too: two functions of one name with different constants would be taken for each other as soon
as one of them comes from disk (numba issue 10486). So every constant is part of the name, and of a
kernel's name a digest of all sources beside it, since Numba looks for changes in one file only. One
process at a time may compile or load: Numba numbers its files without asking who else does.

What is on disk is machine code, in a pickle: whoever can write it runs code in every process that
loads it. So it lies where the user alone can write, see `private_folder`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2s
from pathlib import Path
from typing import Any

from filelock import FileLock
from numba import cfunc, njit
from numba.core import config as numba_config
from numba.core.caching import FunctionCache

from .private_folder import own_folder, require_private

_config: Any = numba_config  # made of what is in the environment


def part(function: Callable[..., Any], *constants: int) -> Any:
    """Compile ``function``, which closes over ``constants``, as a part of a kernel."""
    name = "_".join([function.__name__, *map(str, constants)])
    function.__name__ = function.__qualname__ = name
    return njit(function, nogil=True, error_model="numpy")


def bare(function: Callable[..., Any], *constants: int) -> Any:
    """The same of one that makes no arrays: references to those given are not counted, which
    takes long where calls are short."""
    part(function, *constants)  # names it
    compile_: Any = njit
    return compile_(function, nogil=True, error_model="numpy", _nrt=False)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile ``function`` and all its parts at its first use, or find them on disk."""
    function.__qualname__ = f"{function.__name__}_{_sources()}"
    try:
        with _kept(function):
            compiled = njit(function, cache=True, nogil=True, error_model="numpy")
    except (RuntimeError, OSError) as error:
        _warn_once(str(error).split("for file")[-1].strip())
        return part(function)
    folder = Path(compiled.stats.cache_path)
    compile_ = compiled.compile

    def alone(signature: Any) -> Any:
        with FileLock(folder / f"{function.__name__}.lock"):
            return compile_(signature)

    compiled.compile = alone
    return compiled


def callback(function: Callable[..., Any], signature: Any) -> Any:
    """The same for C to call, compiled or found at once; it has an ``address``."""
    function.__qualname__ = f"{function.__name__}_{_sources()}"
    try:
        with _kept(function) as folder, FileLock(folder / f"{function.__name__}.lock"):
            return cfunc(signature, cache=True, error_model="numpy")(function)
    except (RuntimeError, OSError) as error:
        _warn_once(str(error).split("for file")[-1].strip())
        return cfunc(signature, error_model="numpy")(function)


@contextmanager
def _kept(function: Callable[..., Any]) -> Iterator[Path]:
    """Have Numba keep what is compiled of ``function`` in a folder that is the user's alone.

    Raises `RuntimeError` or `OSError` where there is none.
    """
    chosen: Any = FunctionCache(function)  # type: ignore[no-untyped-call]
    before, found = _config.CACHE_DIR, _checked(Path(chosen.cache_path))
    try:
        if found is None:
            _config.CACHE_DIR = str(own_folder())
            chosen = FunctionCache(function)  # type: ignore[no-untyped-call]
            found = require_private(Path(chosen.cache_path))
        yield found
    finally:
        _config.CACHE_DIR = before


@cache
def _checked(folder: Path) -> Path | None:
    """``folder``, made if it is not there; None where others can write to it."""
    try:
        return require_private(folder)
    except OSError as error:
        if _config.CACHE_DIR:  # somebody chose it
            warnings.warn(f"compiled kernels are kept in {own_folder()}: {error}.", stacklevel=5)
        return None


@cache
def _sources() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return blake2s(b"".join(file.read_bytes() for file in files), digest_size=4).hexdigest()


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        "compiled kernels cannot be kept on disk, every process will compile them anew for some "
        f"seconds ({reason}). Set NUMBA_CACHE_DIR to a folder that can be written.",
        stacklevel=4,
    )
