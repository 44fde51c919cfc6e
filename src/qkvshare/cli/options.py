"""Options that several verbs share, and the consoles they print to."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from ..card import Key
from ..card.errors import StoreError
from ..card.files import require_output
from ..store import Store
from . import plain

if TYPE_CHECKING:
    from ..hf.session.session import Session

MOST = 1_000_000  # of anything that is counted: a typing error is refused, not computed

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

T = TypeVar("T", Path, Path | None, str | None)
N = TypeVar("N", float, float | None, list[float] | None)


def key_of(source: str | None) -> Key | None:
    """The key that ``--key`` names, if any."""
    return None if source is None else Key.load(source)


def open_store(
    root: Path | None, tenant: str | None, key: str | None, limit: str | None = None
) -> Store:
    """The store that ``--store``, ``--tenant``, ``--key`` and ``--limit`` name."""
    size = None if limit is None else bytes_of(limit)
    return Store(root_of(root), tenant=tenant, key=key_of(key), limit=size)


def root_of(root: Path | None) -> Path:
    """The store's folder, by default the user's."""
    named = root or os.environ.get("QKVSHARE_STORE")
    return Path(named) if named else Path.home() / ".local" / "share" / "qkvshare" / "store"


def bytes_of(text: str) -> int:
    """Bytes of a size such as 20GB. Raises `StoreError`."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?)B?", text.strip().upper())
    if found is None:
        raise StoreError(f"{text!r} is not a size; expected a number and KB, MB, GB or TB.")
    return int(float(found[1]) * _UNITS[found[2]])


def writable(output: T) -> T:
    """Callback of options that name a file to write: a bad name is refused at once."""
    if output not in (None, "-"):
        require_output(Path(str(output)))
    return output


def lineage(agent: str) -> str:
    """Callback of a name in a card's lineage, which has a limit."""
    if len(agent) > 256:
        raise typer.BadParameter(f"{len(agent)} letters; expected at most 256.")
    return agent


def finite(value: N) -> N:
    """Callback of options that are floats: NaN would pass any minimum."""
    for number in value if isinstance(value, list) else [value]:
        if number is not None and not math.isfinite(number):
            raise typer.BadParameter(f"{number} is no finite number.")
    return value


def load_session(model: str) -> Session:
    """The model in memory, with our attention, which is faster after a long context."""
    from ..hf.attention import NAME
    from ..hf.model.load import load_model
    from ..hf.session.session import Session

    loaded, tokenizer = load_model(model)
    loaded.set_attn_implementation(NAME)
    return Session(loaded, tokenizer)


# Results go to stdout, everything else to stderr, so that output can be piped.
out = Console()
progress = Console(stderr=True)


def say(text: str) -> None:
    """Print a line on stdout, without markup or control characters."""
    out.print(plain(text), markup=False, soft_wrap=True)


Card = Annotated[Path, typer.Argument(help="A card file.")]
Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A hub id, a folder, a GGUF file, or smollm2-135m (embedded)."
    ),
]
CodecName = Annotated[
    str | None,
    typer.Option(
        help="How to encode: raw, packed, transform (needs a profile), or a plug-in. The default "
        "is transform if the model has a profile, else packed. Parameters: transform:refinements=1."
    ),
]
ScorerName = Annotated[
    str | None,
    typer.Option(
        help="How to guess what later queries look at (packed, transform): attention, or a "
        "plug-in. Parameters: attention:count=32."
    ),
]
AllocatorName = Annotated[
    str | None,
    typer.Option(
        help="How to allocate the bits (packed): lagrangian, or a plug-in. "
        "Parameters: lagrangian:floor=0.02."
    ),
]
Bits = Annotated[
    float | None,
    typer.Option(min=0.01, max=MOST, callback=finite, help="Bits per value of the whole file."),
]
ProfileFile = Annotated[
    Path | None,
    typer.Option("--profile", help="A profile from calibrate that is not in the profiles' folder."),
]
AgentName = Annotated[
    str, typer.Option("--agent", callback=lineage, help="A name for the card's lineage.")
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", callback=writable, help="Where to write the card."),
]
KeyFile = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="FILE", help="The key of sealed cards; env takes it from $QKVSHARE_KEY."
    ),
]
TrustFile = Annotated[
    Path | None,
    typer.Option("--trust", help="Public keys, one a line; refuse cards that none of them signed."),
]
Json = Annotated[
    str | None,
    typer.Option("--json", callback=writable, help="Also write JSON to this file; - is stdout."),
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="The store's folder; by default $QKVSHARE_STORE, or one in ~/.local/share.",
    ),
]
TenantName = Annotated[
    str | None, typer.Option("--tenant", help="Whose cards; tenants share nothing.")
]
Limit = Annotated[
    str | None, typer.Option("--limit", help="The most that all files may take: 500MB or 20GB.")
]
