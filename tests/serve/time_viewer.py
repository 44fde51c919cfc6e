"""How long the page takes for a card of 8,000 tokens in 30 layers, in the installed Chromium.

    python -m tests.serve.time_viewer

The card has the geometry of the embedded model and random numbers; its text is this repository's.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import fastapi
import msgspec
import numpy as np
import torch
from transformers import AutoTokenizer

from qkvshare.card import Layer
from qkvshare.codecs import LayerKV, Packed
from qkvshare.hf.model.identity import tokenizer_digest
from qkvshare.hf.model.load import embedded_folder
from qkvshare.serve.viewer import router
from qkvshare.serve.viewing import card_view
from qkvshare.store import Store

from ..cards import IDENTITY, card_of, encode
from .browser import chromium
from .server import serving

TOKENS, LAYERS, HEADS, DIM = 8000, 30, 3, 64
# Milliseconds from an event to the next frame drawn, and those of tasks over 50.
WATCH = """() => {
  window.long = [];
  new PerformanceObserver((list) => window.long.push(...list.getEntries().map((e) => e.duration)))
    .observe({ type: "longtask", buffered: true });
}"""
FRAME = """(act) => new Promise((done) => {
  const start = performance.now();
  act();
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""
KEYS = f"""async () => {{
  const text = document.querySelector(".text"), frame = {FRAME}, found = [];
  const press = (key) => text.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true }}));
  const keys = ["ArrowRight", "ArrowDown", "PageDown", "ArrowLeft", "ArrowUp", "End", "Home"];
  for (let n = 0; n < 210; n += 1) found.push(await frame(() => press(keys[n % keys.length])));
  return found;
}}"""
POINTER = f"""async () => {{
  const frame = {FRAME}, found = [], spans = document.querySelectorAll(".text span");
  for (let n = 0; n < 200; n += 1) {{
    const move = new PointerEvent("pointermove", {{ bubbles: true }});
    found.push(await frame(() => spans[(n * 37) % 600].dispatchEvent(move)));
  }}
  return found;
}}"""


def main() -> None:
    """Print times in ms."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    root = Path(__file__).parents[2]
    text = "".join(path.read_text() for path in sorted(root.glob("docs/*.md")))
    ids = np.array(tokenizer(text)["input_ids"][:TOKENS], np.int32)
    codec, draw = Packed(), torch.Generator().manual_seed(0)
    layers = [LayerKV(*torch.randn(2, HEADS, TOKENS, DIM, generator=draw)) for _ in range(LAYERS)]
    blobs = encode(codec, layers)
    identity = msgspec.structs.replace(IDENTITY, tokenizer=tokenizer_digest(tokenizer))
    made = card_of(ids, blobs, codec, [Layer("full", HEADS, DIM, DIM)] * LAYERS, identity)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        store = Store(folder)
        digest = store.put(made)
        card_view(store.get(digest), tokenizer)
        start = time.perf_counter()
        answer = msgspec.json.encode(card_view(store.get(digest), tokenizer))
        took = 1000 * (time.perf_counter() - start)
        print(f"answer: {took:.0f} ms, {len(answer) / 1e6:.2f} MB; tokens: {len(ids)}")
        app = fastapi.FastAPI()
        app.include_router(router(lambda _: store, tokenizer, lambda _: []))
        with serving(app) as url:
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(url)
            page.get_by_role("region", name="Cards").wait_for()
            page.evaluate(WATCH)
            opened = page.evaluate(
                f"""async () => {{
              const start = performance.now(), frame = {FRAME};
              location.hash = "{digest}";
              while (!document.querySelector(".text")) await frame(() => {{}});
              return performance.now() - start;
            }}"""
            )
            print(f"open, from click to text drawn: {opened:.0f} ms")
            print(f"tasks over 50 ms: {[round(n) for n in page.evaluate('window.long')]}")
            page.evaluate("window.long = []")
            for name, script in (("key", KEYS), ("pointer", POINTER)):
                found = sorted(page.evaluate(script))
                middle, worst = statistics.median(found), found[-1]
                late = found[int(0.95 * len(found))]
                print(f"{name}: median {middle:.1f} ms, 95 % {late:.1f} ms, worst {worst:.1f} ms")
            print(f"tasks over 50 ms: {[round(n) for n in page.evaluate('window.long')]}")


if __name__ == "__main__":
    main()
