"""Options that several verbs share, and the consoles they print to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress

from ..card import Key
from ..card.files import require_output
from . import plain

MOST = 1_000_000  # of anything that is counted: a slip of the finger is refused, not computed

T = TypeVar("T", Path, Path | None, str | None)
N = TypeVar("N", float, float | None, list[float] | None)


def key_of(source: str | None) -> Key | None:
    """The key that ``--key`` names, if it does."""
    return None if source is None else Key.load(source)


def writable(output: T) -> T:
    """Callback of every option that names a file to be written: a bad name is refused at once."""
    if output not in (None, "-"):
        require_output(Path(str(output)))
    return output


def lineage(agent: str) -> str:
    """Callback of a name in a card's lineage, which has room for so many letters."""
    if len(agent) > 256:
        raise typer.BadParameter(f"{len(agent)} letters; expected at most 256.")
    return agent


def finite(value: N) -> N:
    """Callback of every option that is a number with a fraction: NaN passes any minimum."""
    for number in value if isinstance(value, list) else [value]:
        if number is not None and not math.isfinite(number):
            raise typer.BadParameter(f"{number} is no finite number.")
    return value


# Results go to stdout, everything else to stderr: output can be piped.
out = Console()
progress = Console(stderr=True)


def bar() -> Progress:
    """A bar that is there while there is a terminal, and something to wait for."""
    return Progress(console=progress, transient=True, disable=not progress.is_terminal)


def say(text: str) -> None:
    """Print a line on stdout; names in it are neither markup nor commands for the terminal."""
    out.print(plain(text), markup=False, soft_wrap=True)


Card = Annotated[Path, typer.Argument(help="A card file.")]
Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A hub id, a folder, or smollm2-135m (the embedded model)."),
]
CodecName = Annotated[
    str | None,
    typer.Option(
        help="How to encode: raw, packed, transform (with a profile), or a "
        "plug-in's; by default transform where a profile of the model is at hand, else packed; "
        "parameters as in transform:refinements=1."
    ),
]
ScorerName = Annotated[
    str | None,
    typer.Option(
        help="Who tells what later queries look at (packed, transform): attention, or a plug-in's; "
        "parameters as in attention:count=32."
    ),
]
AllocatorName = Annotated[
    str | None,
    typer.Option(
        help="Who allocates the bits (packed): lagrangian, or that of a plug-in; "
        "parameters as in lagrangian:floor=0.02."
    ),
]
Bits = Annotated[
    float | None,
    typer.Option(min=0.01, max=MOST, callback=finite, help="Bits per value of the whole file."),
]
ProfileFile = Annotated[
    Path | None,
    typer.Option("--profile", help="What calibrate wrote; needed where it is not in its folder."),
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", callback=writable, help="Where to write the card."),
]
KeyFile = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="FILE", help="The key of sealed cards; env for that in QKVSHARE_KEY."
    ),
]
TrustFile = Annotated[
    Path | None,
    typer.Option("--trust", help="Public keys, one a line: refuse cards nobody of them signed."),
]
Json = Annotated[
    str | None,
    typer.Option("--json", callback=writable, help="Also write JSON here; - for stdout."),
]
