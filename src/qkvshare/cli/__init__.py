"""The command line: one file per verb. Errors go to stderr as one line, with exit code 1."""

from __future__ import annotations

import sys

from ..card.errors import QKVShareError


def plain(text: str) -> str:
    """What a card says is shown, never obeyed by the terminal: control characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def main() -> None:
    """Entry point of ``qkvshare``."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit("error: the command line needs its extra: pip install 'qkvshare[cli]'")
    try:
        app()
    except QKVShareError as error:
        print(f"error: {type(error).__name__}: {plain(str(error))}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
