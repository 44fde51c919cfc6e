// Elements and numbers. Text is put into the page by textContent only, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element. `properties`: attributes, and listeners named on…; `children`: elements or text. */
export function el(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

export function svg(name, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, name), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

/** A heading and its content. */
export function section(title, ...children) {
  return el("section", { "aria-label": title }, el("h2", {}, title), ...children);
}

/** A table with a row of headings; `rows` are tr elements. */
export function table(heads, rows, properties) {
  const head = el("tr", {}, heads.map((name) => el("th", { scope: "col" }, name)));
  return el("table", properties, el("thead", {}, head), el("tbody", {}, rows));
}

export const number = (...content) => el("td", { class: "number" }, content);

/** A bar of parts, each with a class and its percentage of the bar. */
export function stack(name, parts) {
  return el("div", { class: name, "aria-hidden": "true" }, parts.map(([kind, percent]) => {
    const part = el("i", { class: kind });
    part.style.width = `${percent}%`; // not an attribute: the policy allows no inline style
    return part;
  }));
}

/** Names and values; values are text or elements. */
export function facts(pairs) {
  return el("dl", {}, pairs.filter(Boolean).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

export const count = (n) => n.toLocaleString("en");
export const bits = (n) => (n === null ? "—" : n.toFixed(n < 10 ? 2 : 1)); // null: of states alone
export const modified = (event) => event.ctrlKey || event.altKey || event.metaKey;
export const short = (digest) => digest.slice(0, 8);
export const plural = (n, one) => `${count(n)} ${one}${n === 1 ? "" : "s"}`;

export function size(n) {
  if (n < 1000) return `${n} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let at = -1;
  while (n >= 1000 && at < units.length - 1) [n, at] = [n / 1000, at + 1];
  return `${n.toFixed(n < 10 ? 2 : n < 100 ? 1 : 0)} ${units[at]}`;
}

export const ms = (n) => (n < 1000 ? `${n.toFixed(n < 10 ? 1 : 0)} ms` : `${(n / 1000).toFixed(2)} s`);

/** "3 min ago", "in 2 h"; `at` in seconds since 1970. */
export function when(at) {
  const seconds = at - Date.now() / 1000;
  const far = Math.abs(seconds);
  const [n, unit] = far < 60 ? [far, "s"] : far < 3600 ? [far / 60, "min"] : far < 86400 ? [far / 3600, "h"] : [far / 86400, "d"];
  return seconds < 0 ? `${Math.floor(n)} ${unit} ago` : `in ${Math.floor(n)} ${unit}`;
}

export const exactly = (at) => new Date(at * 1000).toLocaleString();

/** One Tab stop for many `items`; `next(item, key)` gives the item that an arrow key goes to. */
export function roving(items, next) {
  items.forEach((item, at) => {
    item.tabIndex = at ? -1 : 0;
    item.addEventListener("focus", () => items.forEach((other) => (other.tabIndex = other === item ? 0 : -1)));
    item.addEventListener("keydown", (event) => {
      const target = modified(event) ? null : next(item, event.key);
      if (!target) return;
      event.preventDefault();
      target.focus();
    });
  });
}
