// One card: its text, and beside it facts about the picked token and the card.

import { bits, count, el, facts, number, section, short, size, stack } from "./dom.js";
import { gridOf, layerChart, layerTable } from "./layers.js";
import { strip } from "./strip.js";
import { legend, scale, textOf } from "./text.js";

const MOST_ROWS = 100; // of segments and hops
const SHADES = { all: "keys and values", keys: "keys", values: "values" };

export function cardPage(view) {
  const known = [fileSection(view), lineageSection(view), segmentSection(view), identitySection(view)];
  const panel = view.bits ? picking(view) : null;
  const text = textOf(view, panel ? panel.show : () => {});
  const bar = el("div", { class: "bar" });
  if (panel) {
    const along = strip(view.tokens, text.pick);
    panel.follow(along);
    const shade = (kind) => {
      text.shade(view.bits[kind]);
      along.draw(view.bits[kind]);
      bar.querySelector(".legend").replaceWith(legend(view.bits[kind]));
    };
    const choice = el("select", { onchange: (event) => shade(event.target.value) },
      Object.entries(SHADES).map(([kind, name]) => el("option", { value: kind }, name)));
    bar.append(el("label", {}, "Shaded by bits of ", choice), el("p", { class: "legend" }), along);
    shade("all");
  }
  const notes = [
    view.texts ? null : "Another tokenizer made these ids; they are shown as they are.",
    view.bits ? null : view.layers.length ? "Too many tokens in too many layers to shade each." : "States alone, and no bits of a token: all tokens share them.",
  ].filter(Boolean).map((note) => el("p", { class: "note" }, note));
  return [el("div", { class: "read" }, bar, notes, text), el("aside", {}, panel ? panel.sections : [], known)];
}

/** The facts about the picked token. */
function picking(view) {
  const grid = gridOf(view), chart = layerChart(view), table = layerTable(view);
  const details = el("div", { class: "token" });
  const say = document.getElementById("say");
  const rank = ranks(view.bits.all);
  let along = null, waiting = null;
  function show(at, byKey) {
    // Once a frame, however fast the pointer is.
    if (waiting === null) requestAnimationFrame(() => draw());
    waiting = [at, byKey];
  }
  function draw() {
    const [at, byKey] = waiting;
    waiting = null;
    const { all, keys, values } = view.bits;
    const [ofKeys, ofValues] = [grid.keys(at), grid.values(at)];
    chart.show(ofKeys, ofValues);
    table.show(ofKeys, ofValues);
    along?.mark(at);
    details.replaceChildren(
      el("p", { class: "what" }, el("q", {}, visible(view, at)), el("b", {}, bits(all[at]), el("small", {}, " bits"))),
      facts([
        ["token", `${count(at)} of ${count(view.tokens)}, id ${view.ids[at]}`],
        ["keys, values", `${bits(keys[at])}, ${bits(values[at])}`],
        ["salience", rank(all[at])],
        ["segment", segmentAt(view, at)],
      ]));
    if (byKey) say.textContent = `Token ${at}: ${visible(view, at)}, ${bits(all[at])} bits, keys ${bits(keys[at])}, values ${bits(values[at])}`;
  }
  const estimated = view.segments.some((run) => run.codec.name === "transform");
  const why = el("p", { class: "note" }, "A card keeps no salience, only the bits that the sender's allocator made of it.",
    estimated ? " transform: within 512 tokens estimated from the tokens' steps." : "");
  return {
    show,
    follow: (other) => (along = other),
    sections: [section("Token", details, why), section("Bits per layer", chart, table)],
  };
}

/** The rank of a token with `n` bits, which is what is left of its salience. */
function ranks(numbers) {
  const sorted = Float64Array.from(numbers).sort();
  if (scale(numbers).alike) return () => "all tokens alike";
  return (n) => `above ${Math.round((100 * sorted.findIndex((one) => one >= n)) / sorted.length)} % of the tokens`;
}

function visible(view, at) {
  if (!view.texts) return String(view.ids[at]);
  if (view.texts[at] === "") return "part of the next character";
  return view.texts[at].replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·");
}

function segmentAt(view, at) {
  const run = view.segments.find((one) => at < one.end);
  return `${run.segment}, ${codec(run)}`;
}

function codec(run) {
  const parameters = Object.entries(run.codec.parameters).map(([name, value]) => `${name} ${value}`);
  return [run.codec.name, ...parameters].join(" ") + (run.here ? "" : ", not in this file");
}

function fileSection(view) {
  const { total, ...kinds } = view.bytes;
  const used = Object.entries(kinds).filter(([, n]) => n);
  const bar = stack("kinds", used.map(([kind, n]) => [kind, (100 * n) / total]));
  const rows = used.map(([kind, n]) => el("tr", {}, el("th", { scope: "row" }, el("i", { class: `key ${kind}` }), kind),
    number(count(n)), number(`${((100 * n) / total).toFixed(1)} %`)));
  return section("Bytes by kind", bar, el("table", {}, el("tbody", {}, rows)), facts([
    ["file", size(view.nbytes) + (view.layers.length ? `, ${bits(view.bits_per_value)} bits per value` : "")],
    ["tokens", count(view.tokens)],
    ["card", code(view.digest)],
    ["created", new Date(view.created).toLocaleString()],
    view.expires && ["expires", new Date(view.expires).toLocaleString()],
    ["signature", view.signature ? el("span", {}, code(view.signature.key), " – named here, not checked: trust is the reader's list of keys") : "none"],
  ]));
}

function lineageSection(view) {
  const rows = view.lineage.slice(-MOST_ROWS).map((hop) => el("li", { value: hop.hop },
    el("b", {}, hop.agent || "unnamed"), ` +${count(hop.tokens_added)} tokens`,
    hop.parent ? [" from ", el("a", { href: `#${hop.parent}`, title: hop.parent }, short(hop.parent))] : ", read from scratch"));
  return section("Lineage", omitted(view.lineage.length), el("ol", {}, rows));
}

function segmentSection(view) {
  const rows = view.segments.slice(-MOST_ROWS).map((run) => {
    const { scorer, allocator, budget, slope } = run.allocation;
    const how = [allocator, scorer && `by ${scorer}`, budget && `budget ${bits(budget)}`, slope !== undefined && slope !== null && `slope ${slope}/32 octave`];
    return el("li", { value: run.segment },
      `tokens ${count(run.start)} to ${count(run.end - 1)}, ${codec(run)}`,
      el("p", { class: "note" }, how.filter(Boolean).join(", "), run.codec.profile ? [", profile ", code(run.codec.profile)] : null));
  });
  return section("Segments", omitted(view.segments.length), el("ol", {}, rows));
}

function omitted(n) {
  return n > MOST_ROWS ? el("p", { class: "note" }, `The last ${MOST_ROWS} of ${count(n)}.`) : null;
}

function identitySection(view) {
  const [first] = view.layers;
  const layers = first ? `${view.layers.length} of ${first.kv_heads} × ${first.head_dim}` : "none with keys and values";
  const pairs = Object.entries(view.identity).map(([name, value]) => {
    if (value === null || value === undefined) return [name.replace("_", " "), "none"];
    if (typeof value === "object") return [name, el("span", {}, code(value.digest), ` scale ${value.scale}`)];
    return [name.replace("_", " "), code(value)];
  });
  return section("Identity", facts([["layers", layers], ...pairs,
    ["digests", view.salted ? "salted, this tenant's own" : "plain"]]));
}

const code = (text) => el("code", { title: text }, text);
