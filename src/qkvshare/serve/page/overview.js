// The store: lineage, cards, last resumes.

import { bits, count, el, exactly, ms, number, plural, roving, section, short, size, stack, table, when } from "./dom.js";
import { graph } from "./graph.js";

export function overviewPage(view) {
  if (!view.cards.length) return [el("p", { class: "empty" }, "No cards yet. What agents capture or put appears here.")];
  return [
    section("Lineage", graph(view)),
    section("Cards", cardTable(view.cards), more(view.left_out)),
    section("Last resumes: time to first token", resumeList(view)),
  ];
}

function more(left) {
  return left ? el("p", { class: "note" }, `${plural(left, "card")} used longer ago not shown.`) : null;
}

function cardTable(cards) {
  const most = Math.max(...cards.map((card) => card.bits_per_value ?? 0));
  const heads = ["agent", "card", "tokens", "bits per value", "in store", "put", "used", "uses", "expires"];
  const found = table(heads, cards.map((card) => row(card, most)), { class: "cards" });
  const links = [...found.querySelectorAll("a")];
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -links.length, End: links.length };
  roving(links, (link, key) => {
    const to = links.indexOf(link) + (steps[key] ?? NaN);
    return links[Math.max(0, Math.min(to, links.length - 1))];
  });
  return el("div", { class: "scroll" }, found);
}

function row(card, most) {
  const name = el("a", { href: `#${card.digest}` }, card.agent || "—");
  const rest = card.problem
    ? [el("td", { colspan: 8, class: "problem" }, card.problem)]
    : [
        el("td", { class: "digest" }, short(card.digest)),
        number(count(card.tokens)),
        number(meter((card.bits_per_value ?? 0) / Math.max(most, 1e-3)), bits(card.bits_per_value)),
        number(size(card.bytes)),
        time(card.put_at),
        time(card.used_at),
        number(count(card.hits)),
        card.expires_at === null ? el("td", {}, "—") : time(card.expires_at),
      ];
  const open = (event) => event.target.closest("a") ?? (location.hash = card.digest);
  return el("tr", { onclick: open }, el("th", { scope: "row" }, name), rest);
}

const time = (at) => el("td", { title: exactly(at) }, when(at));

function meter(share) {
  const bar = el("i", { class: "meter" });
  bar.style.setProperty("--share", share);
  return bar;
}

function resumeList({ resumes, cards }) {
  if (!resumes.length) return el("p", { class: "empty" }, "None since the server started.");
  const agents = new Map(cards.map((card) => [card.digest, card.agent]));
  const most = Math.max(...resumes.map((one) => one.ttft_ms));
  const all = resumes.map(stages);
  const names = [...new Set(all.flatMap((each) => each.map(([name]) => name)))];
  return el("ol", { class: "resumes" }, resumes.map((one, at) => resume(one, agents, most, all[at], names)));
}

/** The stages until the first token: the first ones that fit into its time. */
function stages({ ttft_ms, stages_ms }) {
  const found = Object.entries(stages_ms);
  let rest = ttft_ms, count = 0;
  while (count < found.length && found[count][1] <= rest + 0.01) rest -= found[count++][1];
  return [...found.slice(0, count), ...(rest > 0.05 ? [["first token", rest]] : [])];
}

function resume(one, agents, most, stages, names) {
  const kind = (name) => `stage${names.indexOf(name) % 6}`;
  const bar = stack("stages", stages.map(([name, took]) => [kind(name), (100 * took) / most]));
  const named = stages.map(([name, took]) => el("span", {}, el("i", { class: `key ${kind(name)}` }), ` ${name} ${ms(took)} `));
  const what = el("span", {}, one.parts.map((part, at) => el("span", {}, at ? " + " : "", origin(part, agents))));
  if (one.composed) what.append(" (composed)");
  const head = el("p", {}, el("b", {}, ms(one.ttft_ms)), what, el("span", { class: "note", title: exactly(one.time) }, when(one.time)));
  return el("li", {}, head, bar, el("p", { class: "note" }, named));
}

/** A part of a prompt: its card, or text that was read, and how many tokens it has. */
function origin({ card, tokens }, agents) {
  if (card === null) return `${plural(tokens, "token")} read`;
  const whose = agents.get(card) || short(card);
  return el("span", {}, agents.has(card) ? el("a", { href: `#${card}` }, whose) : whose, ` ${count(tokens)}`);
}
