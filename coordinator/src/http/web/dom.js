// Small tools to build the page. Text from agents and origins is only ever set as text, never as markup.

import { thousands } from "./format.js";

/** An element; attributes that are null or false are left out; `on*` are listeners; children are nodes or text. */
export function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) listen(node, key.slice(2), value);
    else if (key === "hidden" || key === "open") node[key] = value;
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false && c !== ""));
  return node;
}

/** Listeners are looked up when something happens: a kept element gets those of the newest drawing. */
function heard(event) {
  return event.currentTarget.handlers[event.type](event);
}

function listen(node, type, handler) {
  node.handlers ??= {};
  if (!node.handlers[type]) node.addEventListener(type, heard);
  node.handlers[type] = handler;
}

const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE && (node.dataset.row || node.dataset.key || node.id)) || null;

/** Makes what is there like `next`, and touches nothing that is the same already. */
function become(old, next) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== next.nodeValue) old.nodeValue = next.nodeValue;
    return;
  }
  for (const { name, value } of [...next.attributes]) {
    if (name === "style" || old.getAttribute(name) === value) continue;
    old.setAttribute(name, value);
    if (name === "value") old.value = value;
  }
  for (const { name } of [...old.attributes]) {
    // Opened and closed by people.
    if (name === "style" || next.hasAttribute(name) || (name === "open" && old.tagName === "DETAILS")) continue;
    old.removeAttribute(name);
  }
  // The content policy lets styles through the object model only.
  if (old.style.cssText !== next.style.cssText) old.style.cssText = next.style.cssText;
  for (const [type, handler] of Object.entries(next.handlers || {})) listen(old, type, handler);
  // What draws itself (maps, charts) fills its own place.
  if (old.dataset.own === undefined) reconcile(old, [...next.childNodes]);
}

/** Makes the children of an element like `wanted`: by key where they have one, otherwise in their order. */
function reconcile(parent, wanted) {
  const keys = new Set(wanted.map(keyOf));
  const known = new Map();
  for (const child of [...parent.childNodes]) {
    const key = keyOf(child);
    if (key === null) continue;
    if (keys.has(key)) known.set(key, child);
    else child.remove();
  }
  let at = parent.firstChild;
  for (const next of wanted) {
    const key = keyOf(next);
    const old = key === null ? at : known.get(key);
    known.delete(key);
    // A canvas that shall look different is drawn anew by whoever made it.
    if (!old || keyOf(old) !== key || old.nodeName !== next.nodeName || (old.nodeName === "CANVAS" && !old.isEqualNode(next))) {
      parent.insertBefore(next, at);
      continue;
    }
    if (old === at) at = at.nextSibling;
    else parent.insertBefore(old, at);
    become(old, next);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

/**
 * Puts children in the place of what is there; what is the same is kept, so that the browser lays out and paints only
 * what changed, and what a person is doing stays: focus, typed text, scrolled boxes, opened details.
 */
export function fill(parent, ...children) {
  const keyed = (node) => node.dataset.key || node.id;
  const active = parent.contains(document.activeElement) ? document.activeElement : null;
  reconcile(parent, children.flat().filter((c) => c !== null && c !== undefined && c !== false && c !== "").map((c) => (c instanceof Node ? c : document.createTextNode(c))));
  if (!active || document.activeElement === active || !keyed(active)) return;
  // Moved, or made anew: the focus is there again.
  const again = parent.contains(active) ? active : [...parent.querySelectorAll("[data-key], [id]")].find((n) => keyed(n) === keyed(active));
  again?.focus({ preventScroll: true });
}

/** Where somebody marks text: that is not to be replaced under their hands. */
export function marked() {
  const selection = document.getSelection();
  return selection && !selection.isCollapsed ? selection.anchorNode : null;
}

/** A link to a view. */
export function link(list, argument, query) {
  const q = new URLSearchParams(Object.entries(query || {}).filter(([, v]) => v !== "" && v !== undefined && v !== null));
  const tail = argument ? `/${encodeURIComponent(argument)}` : "";
  return `#/${list}${tail}${q.size ? `?${q}` : ""}`;
}

/** Says something to screen readers, once. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

/** A panel with a heading, tools, and the JSON behind it one click away. */
export function panel(title, { json, tools, id, note } = {}, ...children) {
  const heading = `h-${id || title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return el(
    "section",
    { class: "panel", "aria-labelledby": heading, id: id || null },
    el(
      "div",
      { class: "head" },
      el("h2", { id: heading }, title),
      note ? el("span", { class: "soft" }, note) : null,
      el("span", { class: "grow" }),
      tools || null,
      json ? el("a", { class: "json", href: `api/v1/${json}`, "aria-label": `${title} as JSON`, "data-key": `json-${heading}` }, "JSON") : null,
    ),
    ...children,
  );
}

/** "showing 100 of 250", when not all are. */
export const partly = (shown, total) => (total > shown ? `showing ${thousands(shown)} of ${thousands(total)}` : null);

/** Does the page show cards instead of tables? As in app.css. */
export const narrow = () => innerWidth <= 720;

/** Tables of which people want to see all columns, by caption. */
const whole = new Set();

/**
 * A table. Columns: {head, number, minor, named, cell(item)}. Wide ones scroll inside of their own box, by keyboard too;
 * on small screens rows are cards, minor columns are shown when asked for, and a first column that is only a number is
 * named.
 */
export function table(caption, columns, items, { empty, key } = {}) {
  if (!items.length) return el("p", { class: "empty" }, empty || "Nothing here.");
  const look = (c) => [c.number ? "n" : "", c.minor ? "minor" : "", c.named ? "named" : ""].filter(Boolean).join(" ") || null;
  const head = columns.map((c) => el("th", { scope: "col", role: "columnheader", class: look(c) }, c.head));
  const rows = items.map((item, i) =>
    el(
      "tr",
      { "data-row": key ? key(item) : i, role: "row" },
      ...columns.map((c, at) => {
        const tag = at === 0 ? "th" : "td";
        return el(tag, { scope: at === 0 ? "row" : null, role: at === 0 ? "rowheader" : "cell", class: look(c), "data-head": c.head }, c.cell(item));
      }),
    ),
  );
  const box = el(
    "div",
    { class: `scroll${whole.has(caption) ? " whole" : ""}`, tabindex: 0, role: "region", "aria-label": `${caption}, table`, "data-key": `table-${caption}` },
    el("table", { role: "table" }, el("caption", { class: "visually-hidden" }, caption), el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...head)), el("tbody", { role: "rowgroup" }, ...rows)),
  );
  if (!columns.some((c) => c.minor)) return box;
  const words = () => (whole.has(caption) ? "Less of each" : "More of each");
  const toggle = el("button", {
    type: "button", class: "columns", "aria-expanded": String(whole.has(caption)), "aria-label": `${words()}: ${caption}`, "data-key": `columns-${caption}`,
    onclick: ({ currentTarget: button }) => {
      if (!whole.delete(caption)) whole.add(caption);
      button.nextElementSibling.classList.toggle("whole", whole.has(caption));
      button.setAttribute("aria-expanded", String(whole.has(caption)));
      button.setAttribute("aria-label", `${words()}: ${caption}`);
      button.textContent = words();
    },
  }, words());
  return el("div", {}, toggle, box);
}

/** A bar that is also text. */
export function bar(part, whole, label) {
  const percent = whole > 0 ? Math.min(100, (100 * part) / whole) : 0;
  const inner = el("i", {});
  inner.style.width = `${percent}%`;
  return el(
    "div",
    { class: "bar", role: "progressbar", "aria-valuenow": Math.floor(percent), "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": label },
    inner,
  );
}

/** A state as a shape, a word and a colour: the colour is never alone. */
const MARKS = {
  ready: "●", ok: "●", up: "●", done: "●", info: "○",
  staging: "◐", receiving: "◐", running: "◐", verifying: "◑", waiting: "◐", suspect: "◌", warning: "▲",
  queued: "○", missing: "·", absent: "·", idle: "·", empty: "·", cancelled: "·", ended: "·",
  failed: "✕", bad: "✕", down: "✕", error: "✕",
};
const TONES = {
  ready: "t-good", ok: "t-good", up: "t-good", done: "t-good",
  staging: "t-busy", receiving: "t-busy", running: "t-busy", verifying: "t-busy", waiting: "t-busy",
  suspect: "t-warn", warning: "t-warn",
  failed: "t-alarm", bad: "t-alarm", down: "t-alarm", error: "t-alarm",
};
export function state(name, text) {
  return el("span", { class: `state ${TONES[name] || "t-quiet"}` }, el("span", { class: "mark", "aria-hidden": "true" }, MARKS[name] || "·"), ` ${text || name}`);
}

/** When what is being typed into a filter is asked for. */
let typing = 0;

/** A filter's text field and state choices, and the pages of a list. `go` gets the changed query. */
export function listTools({ page, query, states, label, go, limit, by = "name", what = "state" }) {
  const search = el("input", {
    type: "search", placeholder: `filter by ${by}`, "aria-label": `Filter ${label} by ${by}`, "data-key": `q-${label}`, value: query.q || "",
    oninput: (event) => {
      clearTimeout(typing);
      const text = event.target.value;
      typing = setTimeout(() => go({ q: text, offset: "" }), 250);
    },
  });
  const choice = states
    ? el(
        "select",
        { "aria-label": `Show ${label} ${what === "state" ? "in state" : `of ${what}`}`, "data-key": `state-${label}`, onchange: (e) => go({ state: e.target.value, offset: "" }) },
        ...["", ...states].map((s) => el("option", { value: s, selected: (query.state || "") === s }, s || `any ${what}`)),
      )
    : null;
  const shown = page ? page.items.length : 0;
  const from = page && shown ? page.offset + 1 : 0;
  const filtered = page && page.matched !== page.total ? ` that match (${thousands(page.total)} in all)` : "";
  const text = page ? `showing ${from ? `${thousands(from)}–${thousands(page.offset + shown)}` : "0"} of ${thousands(page.matched)}${filtered}` : "";
  const step = limit || 50;
  const button = (name, to, able) =>
    el("button", { type: "button", disabled: !able, "data-key": `${name}-${label}`, "aria-label": `${name} ${label}`, onclick: () => go({ offset: to ? String(to) : "" }) }, name === "previous" ? "‹" : "›");
  const more = page && page.matched > step;
  return el(
    "div",
    { class: "tools" },
    search,
    choice,
    el("span", { class: "soft count" }, text),
    more || (page && page.offset) ? button("previous", Math.max(0, page.offset - step), page.offset > 0) : null,
    more ? button("next", page.offset + step, page.offset + shown < page.matched) : null,
  );
}
