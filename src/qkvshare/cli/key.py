"""``qkvshare key``: make the keys that cards are sealed and signed with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..card import Key, Signer
from .options import say

Target = Annotated[Path, typer.Argument(help="A new file, written with mode 600.")]


def new(path: Target) -> None:
    """Make a key for --key: cards are sealed with it, and opened with it alone."""
    key = Key.generate()
    key.save(path)
    say(f"{path}: key {key.id}; whoever has the file can read the cards, nobody without it")


def signer(path: Target) -> None:
    """Make a private key for --sign, and print the public one for others' --trust."""
    made = Signer.generate()
    made.save(path)
    typer.echo(made.public)
