// The page: which view, its documents, and what is common to all views.

import { el, fill, link, marked, narrow, say } from "./dom.js";
import { clock, span } from "./format.js";
import { Live } from "./live.js";
import { overview } from "./overview.js";
import { dataset } from "./dataset.js";
import { node } from "./node.js";
import { datasets, events, jobs, nodes } from "./lists.js";

const VIEWS = { "": overview, datasets, dataset, nodes, node, jobs, events };
const main = document.getElementById("main");
const cli = document.getElementById("cli");

/** `#/nodes/n1?offset=50` as {name, argument, query}. */
function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [list, ...rest] = path.split("/");
  let argument = rest.join("/");
  try {
    argument = decodeURIComponent(argument);
  } catch {
    // Not our own link: taken as it is.
  }
  const single = { datasets: "dataset", nodes: "node" }[list];
  return { name: argument && single ? single : list, argument, query: Object.fromEntries(new URLSearchParams(query || "")) };
}

let shown = null;

class Shown {
  constructor(at) {
    const view = VIEWS[at.name] || VIEWS[""];
    this.at = at;
    this.view = view;
    this.dirty = new Set();
    this.frame = 0;
    this.context = {
      ...at,
      now: () => live.now(),
      go: (change) => {
        const query = { ...route().query, ...change };
        location.hash = link(at.argument ? `${at.name}s` : at.name, at.argument, query);
      },
      again: () => this.changed(null),
    };
    this.sections = view.sections(this.context).map((section) => ({ ...section, box: el("div", { class: section.class || null }) }));
    this.watches = [...new Set(this.sections.flatMap((s) => s.watches || []))];
    document.title = `${view.title(at)} · Millstream`;
    main.replaceChildren(el("h1", {}, view.title(at)), ...this.sections.map((s) => s.box));
    cli.firstElementChild.textContent = view.cli(at);
    for (const a of document.querySelectorAll("nav a")) {
      const mine = a.dataset.view === view.menu;
      if (mine) a.setAttribute("aria-current", "page");
      else a.removeAttribute("aria-current");
    }
    this.changed(null);
  }

  /** A document changed (or, with null, everything): the sections that show it are drawn again, once per frame. */
  changed(watch) {
    for (const s of this.sections) if (watch === null || (s.watches || []).includes(watch)) this.dirty.add(s);
    if (!this.frame) this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = 0;
    const began = performance.now();
    // All that asks for the layout comes before or after the changes: it is worked out once.
    const taken = marked();
    const drawn = [];
    for (const section of [...this.dirty]) {
      if (taken && section.box.contains(taken)) continue;
      this.dirty.delete(section);
      const found = (section.watches || []).map((w) => live.documents.get(w));
      const documents = found.map((d) => d?.document);
      const wrong = found.find((d) => d && d.status >= 400);
      if (wrong) {
        fill(section.box, el("p", { class: "wrong" }, wrong.document.error, " ", wrong.document.next));
      } else if (found.every(Boolean)) {
        fill(section.box, section.render(documents, this.context, section.box));
        if (section.drawn) drawn.push(() => section.drawn(documents, section.box));
      } else if (!section.box.firstChild) {
        fill(section.box, el("p", { class: "soft" }, "Loading …"));
      }
    }
    drawn.forEach((draw) => draw());
    // For measurements: what one update costs.
    window.millstreamDraws = (window.millstreamDraws || []).slice(-99);
    window.millstreamDraws.push(performance.now() - began);
  }
}

const badge = document.getElementById("live");
const heard = document.getElementById("age");
const gone = document.getElementById("gone");

function tell(state, dataAt) {
  const age = dataAt ? (Date.now() - dataAt) / 1000 : null;
  const words = {
    live: "● live",
    connecting: "◌ connecting …",
    gone: "✕ no answer",
  };
  badge.dataset.state = state;
  // Read out when the state changes, not every second.
  const text = age !== null && state !== "live" ? `${words[state]} · data ${span(Math.round(age))} old` : words[state];
  if (badge.textContent !== text) badge.textContent = text;
  heard.textContent = dataAt ? `as of ${clock(dataAt)}` : "";
  gone.hidden = state !== "gone";
  if (state === "gone") {
    const since = age === null ? "" : ` What is shown is ${span(Math.round(age))} old.`;
    const told = `The coordinator does not answer.${since} Trying again by itself; nodes go on serving what they have.`;
    if (gone.textContent !== told) gone.textContent = told;
  }
  document.body.dataset.stale = state === "live" ? "" : "yes";
}

const live = new Live((watch) => shown?.changed(watch), tell);

function show() {
  const at = route();
  const same = shown && shown.at.name === at.name && shown.at.argument === at.argument;
  const focus = same && main.contains(document.activeElement) ? document.activeElement.dataset.key : "";
  const typed = same && document.activeElement.tagName === "INPUT" ? document.activeElement : null;
  shown = new Shown(at);
  live.watch(shown.watches);
  if (same) {
    // A filter or page changed: the focus goes on where it was, once the list is there.
    if (focus) keepFocus(focus, typed);
  } else if (document.body.dataset.started) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
    say(document.title);
  }
  document.body.dataset.started = "yes";
}

function keepFocus(key, typed, tries = 60) {
  const again = main.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!again) {
    if (tries) requestAnimationFrame(() => keepFocus(key, typed, tries - 1));
    return;
  }
  again.focus({ preventScroll: true });
  if (typed && again.tagName === "INPUT") {
    again.value = typed.value;
    again.setSelectionRange(typed.selectionStart, typed.selectionEnd);
  }
}

cli.addEventListener("click", async () => {
  const text = cli.firstElementChild.textContent;
  try {
    await navigator.clipboard.writeText(text);
    say(`Copied: ${text}`);
    cli.dataset.copied = "yes";
  } catch {
    // Pages that are not served over TLS may not write to the clipboard: the text is marked, ready for Ctrl-C.
    getSelection().selectAllChildren(cli.firstElementChild);
    say("Press Ctrl-C to copy the command");
  }
  setTimeout(() => delete cli.dataset.copied, 1500);
});

const themes = ["system", "light", "dark"];
const themeButton = document.getElementById("theme");
function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  themeButton.textContent = `Theme: ${theme}`;
  try {
    localStorage.setItem("millstream-theme", theme);
  } catch {
    // No storage: the choice lasts as long as the page.
  }
  shown?.changed(null);
}
let theme = "system";
try {
  theme = localStorage.getItem("millstream-theme") || "system";
} catch {
  // As above.
}
setTheme(themes.includes(theme) ? theme : "system");
themeButton.addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  setTheme(theme);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shown?.changed(null));
addEventListener("hashchange", show);
let cards = narrow();
addEventListener("resize", () => {
  // Cards come in smaller pages than rows.
  if (cards !== narrow()) show();
  else shown?.changed(null);
  cards = narrow();
});
show();
