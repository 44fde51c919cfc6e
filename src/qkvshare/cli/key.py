"""``qkvshare key``: make the keys that seal and sign cards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..card import Key, Signer
from .options import say

Target = Annotated[Path, typer.Argument(help="A new file, written with mode 600.")]


def new(path: Target) -> None:
    """Make a key for --key: it seals cards, and only it opens them."""
    key = Key.generate()
    key.save(path)
    say(f"{path}: key {key.id}; only somebody who has this file can read the cards")


def signer(path: Target) -> None:
    """Make a private key for --sign, and print its public key for --trust."""
    made = Signer.generate()
    made.save(path)
    typer.echo(made.public)
