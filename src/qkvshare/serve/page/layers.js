// Bits per layer, keys up and values down: of the card as bars, of the picked token as a line.

import { bits, el, number, svg, table } from "./dom.js";

const WIDTH = 340, HEIGHT = 150, MIDDLE = HEIGHT / 2, MARGIN = 14;

/** The bits of each token in each layer, unpacked from base64. */
export function gridOf(view) {
  const { unit, grid_keys, grid_values } = view.bits;
  const tokens = view.tokens;
  const [keys, values] = [grid_keys, grid_values].map(unpack);
  const column = (grid, at) => view.layers.map((_, layer) => grid[layer * tokens + at] * unit);
  return { keys: (at) => column(keys, at), values: (at) => column(values, at) };
}

function unpack(text) {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

/** A chart as an element with `show(keys, values)`, the bits of a token in each layer. */
export function layerChart(view) {
  const { layer_keys: keys, layer_values: values, unit } = view.bits;
  const most = 255 * unit; // of any token in any layer, so that no line leaves the chart
  const step = WIDTH / keys.length;
  const high = (n) => (n / most) * (MIDDLE - MARGIN);
  const bar = (kind, up) => (n, at) =>
    svg("rect", { class: kind, x: at * step, width: Math.max(1, step - 1), y: up ? MIDDLE - high(n) : MIDDLE + 1, height: high(n) });
  const lines = [svg("path", { class: "token" }), svg("path", { class: "token" })];
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "layers", role: "img", "aria-label": summary(keys, values) },
    keys.map(bar("keys", true)), values.map(bar("values", false)),
    svg("path", { class: "axis", d: `M0 ${MIDDLE + 0.5}H${WIDTH}` }), lines,
    svg("text", { x: 0, y: 10 }, `keys, up to ${bits(most)} bits`),
    svg("text", { x: 0, y: HEIGHT - 3 }, "values"),
    svg("text", { x: WIDTH, y: HEIGHT - 3, "text-anchor": "end" }, `layers 0 to ${keys.length - 1}`));
  const path = (numbers, sign) =>
    numbers.map((n, at) => `${at ? "L" : "M"}${at * step} ${MIDDLE - sign * high(n)}H${(at + 1) * step}`).join("");
  chart.show = (ofKeys, ofValues) => {
    lines[0].setAttribute("d", path(ofKeys, 1));
    lines[1].setAttribute("d", path(ofValues, -1));
  };
  return chart;
}

function summary(keys, values) {
  const of = (numbers) => `${bits(Math.min(...numbers))} to ${bits(Math.max(...numbers))}`;
  return `Bits per value in ${keys.length} layers: keys ${of(keys)}, values ${of(values)}`;
}

/** The same as numbers, with those of the picked token; filled when it is opened. */
export function layerTable(view) {
  const heads = ["layer", "kind", "K", "V", "K of token", "V of token"];
  const rows = view.layers.map((layer, at) =>
    el("tr", {}, el("th", { scope: "row" }, String(at)), el("td", {}, layer.window ? `${layer.kind} ${layer.window}` : layer.kind),
      number(bits(view.bits.layer_keys[at])), number(bits(view.bits.layer_values[at])), number(), number()));
  const found = el("details", {}, el("summary", {}, "as numbers"), el("div", { class: "scroll" }, table(heads, rows, {})));
  let last = null;
  const write = () => {
    if (!found.open || !last) return;
    rows.forEach((row, at) => last.forEach((numbers, kind) => (row.cells[4 + kind].textContent = bits(numbers[at]))));
  };
  found.addEventListener("toggle", write);
  found.show = (keys, values) => {
    last = [keys, values];
    write();
  };
  return found;
}
