"""Draw docs/images/viewer-*.png from cards of the embedded model: a reader's, and what came of it.

    python -m tests.serve.screenshots

The times of the resumes shown are measured while it runs.
"""

from __future__ import annotations

import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import fastapi
import torch
from PIL import Image

import qkvshare
from qkvshare.card import Signer
from qkvshare.codecs import Packed
from qkvshare.hf.model.load import load_model
from qkvshare.serve.viewer import router
from qkvshare.store import Store

from .browser import chromium
from .server import serving

IMAGES = Path(__file__).parents[2] / "docs" / "images"
QUESTIONS = {
    "helmsman": "Question: What is the ink made from?\nAnswer:",
    "keeper": "Question: When is high water tomorrow?\nAnswer:",
    "clerk": "Question: Who pays when the float is lost?\nAnswer:",
}


def resume(model: Any, card: qkvshare.CacheCard, new: list[int]) -> tuple[dict[str, Any], Any]:
    """Go on from ``card``: what is shown of that, and the cache with ``new`` tokens."""
    start = time.perf_counter()
    arguments = card.inputs(model, new=new, new_only=True)
    ready = time.perf_counter()
    with torch.no_grad():
        model(**arguments)
    done = time.perf_counter()
    stages = {"inject": 1000 * (ready - start), "first token": 1000 * (done - ready)}
    shown = {
        "time": time.time(),
        "parts": [
            {"card": card.digest, "tokens": card.tokens},
            {"card": None, "tokens": len(new)},
        ],
        "composed": False,
        "ttft_ms": 1000 * (done - start),
        "stages_ms": stages,
    }
    return shown, arguments["past_key_values"]


def fill(store: Store, model: Any, tokenizer: Any) -> tuple[str, list[dict[str, Any]]]:
    """Cards of a reader, three who ask, and one who goes on from one of them."""
    text = files("qkvshare.cli").joinpath("manual.txt").read_text()
    read = qkvshare.capture(model, tokenizer, text, bits=4.0, agent="reader", codec=Packed())
    read = read.signed(Signer.generate())
    shown, cards = [], dict[str, qkvshare.CacheCard]()
    store.put(read, ttl=86_400)

    def go_on(agent: str, parent: qkvshare.CacheCard, text: str) -> qkvshare.CacheCard:
        new = tokenizer(f"\n{text}", add_special_tokens=False)["input_ids"]
        took, cache = resume(model, parent, new)
        shown.insert(0, took)
        ids = [*parent.token_ids.tolist(), *new]
        return qkvshare.capture_cache(
            model, cache, ids, tokenizer=tokenizer, parent=parent, agent=agent, ttl=3600
        )

    for agent, question in QUESTIONS.items():
        cards[agent] = go_on(agent, read, question)
        store.put(cards[agent])
    gone = go_on("proofreader", cards["clerk"], "The owner pays.")
    store.put(go_on("printer", gone, "Print this answer in green."))
    store.put(cards["keeper"].fork("night keeper"))
    return read.digest, shown


def save(page: Any, path: Path) -> None:
    """In 256 colours: a third of the bytes."""
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(
        256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    ).save(path, optimize=True)


def main() -> None:
    """Draw both pictures, and the store's."""
    model, tokenizer = load_model("smollm2-135m")
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        store = Store(folder)
        read, resumes = fill(store, model, tokenizer)
        app = fastapi.FastAPI()
        app.include_router(router(lambda _: store, tokenizer, lambda _: resumes))
        with serving(app) as url:
            for scheme in ("light", "dark"):
                page = browser.new_page(
                    viewport={"width": 1280, "height": 760}, color_scheme=scheme
                )
                page.goto(f"{url}/#{read}")
                page.locator(".text span").nth(179).hover()
                page.get_by_role("region", name="Token").get_by_text("179 of").wait_for()
                save(page, IMAGES / f"viewer-{scheme}.png")
                page.close()
            page = browser.new_page(viewport={"width": 1280, "height": 640}, color_scheme="light")
            page.goto(url)
            page.get_by_role("region", name="Cards").wait_for()
            save(page, IMAGES / "viewer-store.png")


if __name__ == "__main__":
    main()
