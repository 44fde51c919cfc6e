"""The verbs, put together."""

from __future__ import annotations

import typer

from .calibrate import calibrate
from .capture import capture
from .check import check
from .demo import demo
from .inspect import inspect
from .key import new, signer
from .mcp import mcp
from .resume import resume
from .serve import serve
from .store import store
from .trim import trim
from .verify import verify

app = typer.Typer(
    name="qkvshare",
    help="Hand the state of one LLM agent to another, as a small verified file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (demo, check, capture, resume, inspect, verify, trim, calibrate, serve):
    app.command()(verb)
keys = typer.Typer(help="Make the keys that seal and sign cards.", no_args_is_help=True)
keys.command()(new)
keys.command()(signer)
app.add_typer(keys, name="key")
app.add_typer(store, name="store")
app.command()(mcp)
