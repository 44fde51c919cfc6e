// A card's text, every token shaded by its bits; the pointer and the arrow keys pick one.

import { bits, el, modified } from "./dom.js";

const LEVELS = 10;
const STEPS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -100, PageDown: 100, Home: -Infinity, End: Infinity };
const CHUNK = 200; // tokens, at least: a block that the browser lays out only when it is near

/** Levels of `numbers`: each shade has a tenth of the tokens, since a few have most of the range. */
export function scale(numbers) {
  const sorted = Float64Array.from(numbers).sort();
  const low = sorted[0], high = sorted.at(-1);
  const alike = high - low < 0.01;
  const ends = Array.from({ length: LEVELS - 1 }, (_, at) => sorted[Math.floor(((at + 1) * sorted.length) / LEVELS)]);
  const level = (n) => ends.filter((end) => n >= end).length;
  return { low, high, alike, level: alike ? () => LEVELS / 2 : level };
}

/** The text as an element with `shade(numbers)` and `pick(index)`; calls `picked(index, byKey)`. */
export function textOf(view, picked) {
  const starts = new Set(view.segments.map((run) => run.start));
  const texts = view.texts ?? view.ids.map((id) => `⟨${id}⟩ `);
  const tokens = texts.map((text, at) => token(text, at, starts.has(at) && at > 0));
  const text = el("div", { class: "text", tabindex: 0, role: "group", "aria-label": "Text of the card; arrow keys pick a token" }, chunks(tokens));
  let now = null, column = null; // the column that up and down keep

  function pick(at, byKey = false) {
    now?.classList.remove("now");
    now = tokens[Math.max(0, Math.min(at, tokens.length - 1))];
    now.classList.add("now");
    if (byKey) now.scrollIntoView({ block: "nearest" });
    picked(now.at, byKey);
  }
  function key(event) {
    if (modified(event)) return;
    const rows = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!rows) column = null;
    else column ??= now.getBoundingClientRect().left;
    const to = rows ? line(tokens, now.at, rows, column) : now.at + (STEPS[event.key] ?? NaN);
    if (Number.isNaN(to)) return;
    event.preventDefault();
    pick(to, true);
  }
  // One listener for all tokens; not "pointerover", which scrolling by key would cause, too.
  text.addEventListener("pointermove", ({ target }) => target !== now && target.at !== undefined && pick(target.at));
  text.addEventListener("keydown", key);
  text.addEventListener("focus", () => now === null && pick(0));
  text.pick = pick;
  text.shade = (numbers) => {
    const { level } = scale(numbers);
    tokens.forEach((one, at) => (one.className = one.className.replace(/^l\d/, `l${level(numbers[at])}`)));
  };
  return text;
}

function token(text, at, first) {
  const made = document.createElement("span");
  made.textContent = text;
  made.at = at;
  // A part of a character and a line end have no text; the style sheet gives both a glyph.
  made.className = `l0${text === "" ? " part" : /^\s*\n\s*$/.test(text) ? " line" : ""}${first ? " first" : ""}`;
  return made;
}

/** Blocks that end where lines do, so that the text looks as if it were one. */
function chunks(tokens) {
  const found = [];
  let block = el("div");
  for (const one of tokens) {
    block.append(one);
    const enough = block.childElementCount >= CHUNK;
    if ((enough && one.textContent.endsWith("\n")) || block.childElementCount >= 8 * CHUNK) {
      found.push(block);
      block = el("div");
    }
  }
  return block.childElementCount ? [...found, block] : found;
}

/** The token of the line above or below `at` that is nearest to `column`. */
function line(tokens, at, step, column) {
  const from = tokens[at].getBoundingClientRect();
  let best = at, far = Infinity, row = null;
  for (let to = at + step; to >= 0 && to < tokens.length; to += step) {
    const box = tokens[to].getClientRects()[0];
    if (!box || Math.abs(box.top - from.top) < box.height / 2) continue;
    row ??= box.top;
    if (Math.abs(box.top - row) > box.height / 2) break;
    const away = Math.abs(box.left - column);
    if (away < far) [best, far] = [to, away];
  }
  return best;
}

/** The meaning of the shades. */
export function legend(numbers) {
  const { low, high, alike } = scale(numbers);
  if (alike) return el("p", { class: "legend" }, `All tokens alike: ${bits(low)} bits per value`);
  const steps = Array.from({ length: LEVELS }, (_, at) => el("i", { class: `l${at}` }));
  return el("p", { class: "legend" }, bits(low), el("span", { "aria-hidden": "true" }, steps), `${bits(high)} bits; each shade has a tenth of the tokens`);
}
