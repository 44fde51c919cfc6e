// The whole context: bits along the tokens, and the position of the picked one.

import { el } from "./dom.js";

const HEIGHT = 36;

/** A strip with `draw(numbers)` and `mark(index)`; a click picks the token there. */
export function strip(tokens, pick) {
  const canvas = el("canvas", { "aria-hidden": "true" });
  const needle = el("i");
  const found = el("div", { class: "strip", onclick: (event) => pick(at(event)) }, canvas, needle);
  const at = (event) => Math.floor(((event.clientX - canvas.getBoundingClientRect().left) / canvas.clientWidth) * tokens);
  let last = null;
  found.draw = (numbers) => {
    last = numbers;
    paint(canvas, numbers);
  };
  found.mark = (index) => needle.style.setProperty("--at", (index + 0.5) / tokens);
  new ResizeObserver(() => last && paint(canvas, last)).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => last && paint(canvas, last));
  return found;
}

function paint(canvas, numbers) {
  const ratio = devicePixelRatio;
  const wide = (canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio)));
  const high = (canvas.height = Math.round(HEIGHT * ratio));
  const pen = canvas.getContext("2d");
  const most = Math.max(...numbers.toSorted((a, b) => a - b).slice(0, Math.ceil(0.995 * numbers.length)).slice(-1), 1e-3);
  pen.fillStyle = getComputedStyle(canvas).color;
  for (let x = 0; x < wide; x += 1) {
    const from = Math.floor((x * numbers.length) / wide);
    const to = Math.max(from + 1, Math.floor(((x + 1) * numbers.length) / wide));
    let sum = 0;
    for (let i = from; i < to; i += 1) sum += numbers[i];
    const tall = Math.min(1, sum / (to - from) / most) * high;
    pen.fillRect(x, high - tall, 1, tall);
  }
}
