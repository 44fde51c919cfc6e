// Which page is shown: the store at "#", a card at "#<digest>".

import { get } from "./asking.js";
import { cardPage } from "./card.js";
import { el, modified, plural, size } from "./dom.js";
import { overviewPage } from "./overview.js";

const main = document.getElementById("main");
const where = document.getElementById("where");
const summary = document.getElementById("summary");
let asked = 0; // requests so far: only the last one's answer is shown
let left = null; // the link to the card that was shown, which gets the focus back

async function show() {
  const mine = ++asked;
  const digest = location.hash.slice(1);
  const list = document.activeElement.closest(".store section")?.ariaLabel ?? "Cards";
  if (digest) left = `section[aria-label="${list}"] a[href="#${CSS.escape(digest)}"]`;
  main.setAttribute("aria-busy", "true");
  try {
    const view = await get(digest ? `v1/view/${encodeURIComponent(digest)}` : "v1/view");
    if (mine === asked) digest ? showCard(view) : showStore(view);
  } catch (error) {
    if (mine === asked) main.replaceChildren(el("p", { role: "alert", class: "problem" }, String(error.message)));
  }
  if (mine === asked) main.removeAttribute("aria-busy");
}

function showStore(view) {
  document.title = "QKVShare";
  where.textContent = "";
  const { cards, bytes, bytes_unshared } = view.stats;
  const shared = bytes_unshared > bytes ? ` (${size(bytes_unshared)} if nothing were shared)` : "";
  summary.textContent = `${plural(cards, "card")} in ${size(bytes)}${shared}${view.sealed ? ", sealed" : ""}`;
  main.className = "store";
  main.replaceChildren(...overviewPage(view));
  const again = left && main.querySelector(left);
  (again ?? main).focus({ preventScroll: !again });
}

function showCard(view) {
  const agent = view.lineage.at(-1).agent || "unnamed agent";
  document.title = `${agent} – QKVShare`;
  where.textContent = agent;
  summary.textContent = "";
  main.className = "card";
  main.replaceChildren(...cardPage(view));
  main.querySelector(".text").focus({ preventScroll: true });
}

document.getElementById("refresh").addEventListener("click", show);
addEventListener("hashchange", show);
addEventListener("keydown", (event) => {
  if (modified(event) || event.target.matches("input, select")) return;
  if (event.key === "Escape" && location.hash) location.hash = "";
  if (event.key === "r") show();
});
show();
