// Lineage as a forest: a column a hand-off, a card under its parent's first child's row.

import { bits, count, el, roving, short, svg } from "./dom.js";

const WIDTH = 184, HEIGHT = 46, ACROSS = 64, DOWN = 12;
const LAST = 1e12; // the time of cards that are gone, which is not known

export function graph({ cards, gone }) {
  const nodes = place([...gone.map((card) => ({ ...card, gone: true })), ...cards]);
  const columns = Math.max(...nodes.map((node) => node.column)) + 1;
  const rows = Math.max(...nodes.map((node) => node.row)) + 1;
  const wide = columns * (WIDTH + ACROSS), high = rows * (HEIGHT + DOWN);
  const lines = svg("svg", { width: wide, height: high, "aria-hidden": "true" }, nodes.flatMap(edge));
  nodes.forEach((node) => (node.box = box(node)));
  roving(nodes.map((node) => node.box), (item, key) => step(nodes, item, key)?.box);
  const inner = el("div", { class: "graph" }, lines, nodes.map((node) => node.box));
  inner.style.width = `${wide}px`;
  inner.style.height = `${high}px`;
  return el("div", { class: "scroll" }, inner);
}

/** Nodes with `above` (parent), `below` (children), `column` and `row`; in order of rows. */
function place(cards) {
  const nodes = new Map(cards.map((card) => [card.digest, { ...card, below: [] }]));
  for (const node of nodes.values()) {
    node.above = nodes.get(node.parent);
    node.above?.below.push(node);
  }
  const placed = new Set();
  let row = -1;
  const roots = [...nodes.values()].filter((node) => !node.above).sort((a, b) => b.below.length - a.below.length);
  // A card can name any parents: one in a circle begins a row, too.
  for (const root of [...roots, ...nodes.values()]) {
    const rest = [[root, 0, true]];
    while (rest.length) {
      const [node, column, newRow] = rest.pop();
      if (placed.has(node)) continue;
      if (newRow) row += 1;
      placed.add(Object.assign(node, { column, row }));
      node.below.sort((a, b) => (a.put_at ?? LAST) - (b.put_at ?? LAST));
      node.below.toReversed().forEach((child) => rest.push([child, column + 1, child !== node.below[0]]));
    }
  }
  return [...placed];
}

const left = (node) => node.column * (WIDTH + ACROSS);
const top = (node) => node.row * (HEIGHT + DOWN) + DOWN / 2;

function edge(node) {
  const x = left(node), y = top(node) + HEIGHT / 2;
  if (!node.above) return node.parent ? [svg("path", { class: "cut", d: `M${x - 24} ${y}H${x}` })] : [];
  const from = left(node.above) + WIDTH, to = top(node.above) + HEIGHT / 2, turn = from + 12;
  const down = `H${turn - 6}Q${turn} ${to} ${turn} ${to + 6}V${y - 6}Q${turn} ${y} ${turn + 6} ${y}`;
  const d = `M${from} ${to}${to === y ? "" : down}H${x}`;
  return [
    svg("path", { class: node.above.gone ? "cut" : "", d }),
    node.tokens_added ? svg("text", { x: x - 6, y: y - 5, "text-anchor": "end" }, `+${count(node.tokens_added)}`) : null,
  ];
}

function box(node) {
  const name = el("b", {}, node.agent || "unnamed");
  const what = node.gone
    ? "not in the store"
    : node.problem
      ? "cannot be read"
      : `${count(node.tokens)} tokens · ${bits(node.bits_per_value)} bits`;
  const label = `${node.agent || "unnamed"}, ${what}, hop ${node.hop ?? "?"}, card ${short(node.digest)}`;
  const made = el("a", {
    href: node.gone ? null : `#${node.digest}`,
    role: "link",
    "aria-disabled": node.gone ? "true" : null,
    "aria-label": label,
    class: node.gone ? "gone" : node.problem ? "bad" : null,
    title: node.digest,
  }, name, el("span", {}, what));
  made.style.left = `${left(node)}px`;
  made.style.top = `${top(node)}px`;
  return made;
}

function step(nodes, item, key) {
  const at = nodes.findIndex((node) => node.box === item);
  const node = nodes[at];
  if (key === "ArrowLeft") return node.above;
  if (key === "ArrowRight") return node.below[0];
  if (key === "ArrowDown") return nodes.find((other) => other.row > node.row && other.column <= node.column);
  if (key === "ArrowUp") return nodes.findLast((other) => other.row < node.row && other.column <= node.column);
  if (key === "Home") return nodes[0];
  if (key === "End") return nodes.at(-1);
  return null;
}
