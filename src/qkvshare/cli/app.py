"""The verbs, put together."""

from __future__ import annotations

import typer

from .bench_capture import capture as bench_capture
from .bench_codecs import codecs
from .bench_kernels import kernels
from .bench_store import store as bench_store
from .bench_ttft import ttft
from .calibrate import calibrate
from .capture import capture
from .demo import demo
from .eval_fidelity import fidelity
from .eval_gsm8k import gsm8k
from .eval_recall import recall
from .eval_relay import relay
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
for verb in (demo, capture, resume, inspect, verify, trim, calibrate, serve):
    app.command()(verb)
evaluations = typer.Typer(help="What quality costs, measured on real cards.", no_args_is_help=True)
evaluations.command()(fidelity)
evaluations.command()(recall)
evaluations.command()(relay)
evaluations.command()(gsm8k)
app.add_typer(evaluations, name="eval")
keys = typer.Typer(help="Keys that cards are sealed and signed with.", no_args_is_help=True)
keys.command()(new)
keys.command()(signer)
app.add_typer(keys, name="key")
timings = typer.Typer(help="What time costs, as ratios within one run.", no_args_is_help=True)
timings.command("capture")(bench_capture)
timings.command()(codecs)
timings.command()(kernels)
timings.command("store")(bench_store)
timings.command()(ttft)
app.add_typer(timings, name="bench")
app.add_typer(store, name="store")
app.command()(mcp)
