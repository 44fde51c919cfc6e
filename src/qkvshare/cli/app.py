"""The verbs, put together."""

from __future__ import annotations

import typer

from .capture import capture
from .demo import demo
from .evaluate import evaluate
from .inspect import inspect
from .resume import resume
from .verify import verify

app = typer.Typer(
    name="qkvshare",
    help="Hand the state of one LLM agent to another, as a small verified file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (demo, capture, resume, inspect, verify):
    app.command()(verb)
app.add_typer(evaluate, name="eval")
