"""Run the command line: errors go to stderr as one line, with exit code 1."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from importlib import import_module

from ..card.errors import QKVShareError
from . import plain


def main() -> None:
    """Entry point of ``qkvshare``."""
    run("qkvshare.cli.app")


def run(module: str) -> None:
    """Run the ``app`` of ``module``; each error is one line on stderr, and code 1."""
    try:
        _run(module)
    except QKVShareError as error:
        _fail(f"{type(error).__name__}: {error}")
    except BrokenPipeError:
        sys.exit(1)  # the reader has closed the pipe, as | head does
    except OSError as error:
        _fail(f"{error}. Is there room, and may you read and write there?")
    except MemoryError as error:
        _fail(f"there is not enough memory: {error}".removesuffix(": "))
    except KeyboardInterrupt:
        sys.exit(130)


def _run(module: str) -> None:
    try:
        app = import_module(module).app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit("error: the command line needs its extra: pip install 'qkvshare[cli]'")
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise QKVShareError(f"{argument!r} is not UTF-8; give names and text in it.") from None
    # Text that the terminal cannot show is escaped.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    finally:
        _flush()


def _flush() -> None:
    """Fail now if stdout is full or closed: at Python's end that is a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _fail(message: str) -> None:
    print(f"error: {plain(message)}", file=sys.stderr)
    sys.exit(1)
