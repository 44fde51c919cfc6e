"""``qkvshare demo``: one process reads, another one answers from its card."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from signal import SIG_DFL, SIGINT, signal
from typing import Any

from rich.table import Table
from rich.text import Text

from ..card.errors import QKVShareError
from .options import out, progress
from .tables import print_table

SYSTEM = "You answer questions about a document in one short sentence."
QUESTIONS = (
    "Who designed the Marlow Tide Printer?",
    "What is the ink made from?",
    "Where was the Marlow Tide Printer designed?",
)
ANSWER_TOKENS = 24
MARK = "\n\nQuestion: "


@dataclass(frozen=True)
class TimedAnswer:
    """B's answer by one path, and milliseconds until its first token."""

    text: str
    ttft_ms: float


def demo() -> None:
    """Agent A reads a manual and writes a card; agent B, a fresh process, answers from it."""
    # Everything is local; a request by mistake should fail and not wait.
    os.environ["HF_HUB_OFFLINE"] = "1"
    out.print("Agent A reads the manual of an invented machine. Agent B answers from A's card.\n")
    with tempfile.TemporaryDirectory() as folder:
        raw, card = Path(folder) / "full-precision.card", Path(folder) / "manual.card"
        with progress.status("loading SmolLM2-135M-Instruct (converted once, about 30 s) …"):
            _in_process(_prepare)
        with progress.status("agent A reads and writes its cards …"):
            tokens, seconds = _in_process(_agent_a, raw, card)
        out.print(f"A read {tokens} tokens in {seconds:.1f} s and wrote:")
        _print_cards({"full precision": raw, "card": card})
        with progress.status("agent B, a fresh process, answers three questions three ways …"):
            answers, weights, refusal = _in_process(_agent_b, raw, card)
        _print_answers(answers)
        out.print(f"B with one of its {weights:,} weights changed is offered the same card:")
        out.print(f"  refused: {refusal}", style="yellow", highlight=False, soft_wrap=True)


def _in_process(function: Any, *arguments: Any) -> Any:
    # Ctrl-C reaches both: the child ends at once, and this process reports it.
    ending: dict[str, Any] = {"initializer": signal, "initargs": (SIGINT, SIG_DFL)}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), **ending) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise QKVShareError(
                "an agent's process was killed; it needs 2 GB of memory."
            ) from error


def _prepare() -> None:
    from ..hf.model.load import embedded_folder

    embedded_folder()


def _load() -> tuple[Any, Any, str]:
    """Model, tokenizer, and the chat, with `MARK` where the question goes."""
    from ..hf.model.load import EMBEDDED, load_model

    model, tokenizer = load_model(EMBEDDED)
    document = (files("qkvshare.cli") / "manual.txt").read_text(encoding="utf-8").strip()
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": document + MARK},
    ]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return model, tokenizer, chat


def _agent_a(raw: Path, card: Path) -> tuple[int, float]:
    """Write the state twice, small and exactly. Returns tokens, and seconds for the small one."""
    from ..codecs import Raw
    from ..hf.capture.capture import capture

    model, tokenizer, chat = _load()
    before, _ = chat.split(MARK)
    capture(model, tokenizer, SYSTEM)  # compiles the kernels, once for each machine
    start = time.perf_counter()
    small = capture(model, tokenizer, before, agent="A")
    seconds = time.perf_counter() - start
    small.save(card)
    capture(model, tokenizer, before, codec=Raw(), agent="A").save(raw)
    return small.tokens, seconds


def _agent_b(raw: Path, card: Path) -> tuple[list[dict[str, TimedAnswer]], int, str]:
    """Answers by re-prefill, full-precision file and card; then the card in a changed model.

    Returns the answers by question and path, the number of weights, and the refusal.
    """
    import torch

    from ..card import CacheCard
    from ..card.engine import Inputs
    from ..card.errors import IdentityError
    from ..hf.model.identity import identify

    model, tokenizer, chat = _load()
    before, after = chat.split(MARK)
    identify(model, tokenizer)  # once a process, like loading

    def new_ids(question: str) -> list[int]:
        ids: list[int] = tokenizer(MARK + question + after, add_special_tokens=False)["input_ids"]
        return ids

    def from_text(question: str) -> dict[str, Any]:
        # The same ids as from a card; one call on the whole text could merge tokens at the seam.
        ids = torch.tensor([tokenizer(before)["input_ids"] + new_ids(question)])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def from_card(path: Path, question: str) -> Inputs:
        card = CacheCard.load(path)
        return card.inputs(model, tokenizer, new_ids(question))

    paths: dict[str, Any] = {
        "re-prefill": from_text,
        "full-precision file": lambda question: from_card(raw, question),
        "card": lambda question: from_card(card, question),
    }
    answers = []
    _answer(model, tokenizer, lambda: paths["card"](QUESTIONS[0]))  # warm up
    for question in QUESTIONS:
        answers.append(
            {
                path: _answer(model, tokenizer, lambda make=make, q=question: make(q))
                for path, make in paths.items()
            }
        )
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1.0
    try:
        from_card(card, QUESTIONS[0])
    except IdentityError as error:
        return answers, model.num_parameters(), str(error)
    raise AssertionError("a card was accepted by a model with other weights")


def _answer(model: Any, tokenizer: Any, arguments: Any) -> TimedAnswer:
    """Generate greedily; the clock runs from before the card is opened to the first token."""
    import torch
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        """Notes the time of the first new token; the first call brings the prompt."""

        calls = 0
        first = 0.0

        def put(self, value: Any) -> None:
            self.calls += 1
            if self.calls == 2:
                self.first = time.perf_counter()

        def end(self) -> None:
            pass

    clock = Clock()
    start = time.perf_counter()
    ready = arguments()
    with torch.no_grad():
        output = model.generate(
            **ready, max_new_tokens=ANSWER_TOKENS, do_sample=False, streamer=clock
        )
    new = output[0, ready["input_ids"].shape[1] :]
    text = tokenizer.decode(new, skip_special_tokens=True).strip()
    return TimedAnswer(text.split(". ")[0], 1000 * (clock.first - start))


def _print_cards(paths: dict[str, Path]) -> None:
    from ..card import CacheCard

    rows = []
    for name, path in paths.items():
        card = CacheCard.load(path)
        codec = card.manifest.segments[0].codec
        width = codec.parameters.get("bits")
        made = codec.name if width is None else f"{codec.name}, {width} bits"
        rows.append([name, made, f"{path.stat().st_size:,}", f"{card.bits_per_value:.2f}"])
    print_table(["file", "codec", "bytes", "bits per value"], rows)


def _print_answers(answers: list[dict[str, TimedAnswer]]) -> None:
    out.print("B's time to first token, and the first sentence of its answer:")
    table = Table(show_lines=True)
    for title in ("question", *answers[0]):
        table.add_column(title, overflow="fold")
    for question, by_path in zip(QUESTIONS, answers, strict=True):
        times = ((f"{at.ttft_ms:,.0f} ms", at.text) for at in by_path.values())
        cells = [Text.assemble((time, "bold"), "\n", text) for time, text in times]
        table.add_row(question, *cells)
    out.print(table)
