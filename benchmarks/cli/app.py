"""The verbs, put together."""

from __future__ import annotations

import typer

from .capture import capture
from .codecs import codecs
from .compose import compose
from .fetch import fetch
from .fidelity import fidelity
from .gsm8k import gsm8k
from .kernels import kernels
from .recall import recall
from .relay import relay
from .store import store
from .train import train
from .ttft import ttft

app = typer.Typer(
    name="benchmarks",
    help="What quality costs on real cards, and what time costs, as ratios within one run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_QUALITY = fidelity, recall, relay, gsm8k, compose
_TIME = ttft, capture, codecs, kernels, store
for verb in (fetch, *_QUALITY, *_TIME, train):
    app.command()(verb)
