// One version: the map, how many copies there are, shards, what moves, what failed.

import { bar, el, link, listTools, narrow, panel, partly, state, table } from "./dom.js";
import { bytes, clock, count, rate, span, thousands } from "./format.js";
import { asked } from "./lists.js";
import { columnsFor, legend, ShardMap, STATES } from "./map.js";
import { stageColumns } from "./overview.js";

/** Rows of a page: shards, nodes, transfers. Cards are taller than rows. */
const limits = () => (narrow() ? [8, 4, 3] : [50, 20, 10]);

const blockingColumns = [
  { head: "Node", cell: (r) => el("a", { href: link("nodes", r.node), "data-key": `r-${r.node}` }, r.node) },
  { head: "State", cell: (r) => state(r.state) },
  { head: "Why", cell: (r) => r.reason || "–" },
  { head: "Bytes", cell: (r) => el("div", {}, `${r.percent} % of ${bytes(r.bytes_wanted)}`, bar(r.bytes_ready, r.bytes_wanted, `Bytes on ${r.node}`)) },
  { head: "Shards", number: true, cell: (r) => `${r.shards_ready} of ${r.shards_wanted}` },
  { head: "Receives", number: true, minor: true, cell: (r) => rate(r.in_bytes_per_s) },
  { head: "Pinned", minor: true, cell: (r) => (r.pinned ? "pinned" : "–") },
];

/** Enough of a checksum to tell it from others; the JSON has all of it. */
const shortened = (text) => (text.length > 19 ? `${text.slice(0, 18)}…` : text);

const few = (names, total) => `${names.join(", ") || "–"}${total > names.length ? ` and ${thousands(total - names.length)} more` : ""}`;

const shardColumns = [
  { head: "Shard", cell: (s) => el("span", { class: "key" }, s.key) },
  { head: "State", cell: (s) => state(s.state) },
  { head: "Copies", number: true, cell: (s) => `${s.copies} of ${s.wanted}` },
  { head: "Bytes", number: true, cell: (s) => bytes(s.bytes) },
  { head: "Bytes %", number: true, cell: (s) => (s.wanted ? `${s.bytes_percent} %` : "–") },
  { head: "Time", number: true, minor: true, cell: (s) => span(s.time_s) },
  { head: "Type", minor: true, cell: (s) => s.type || "–" },
  { head: "Source", minor: true, cell: (s) => few(s.sources, s.sources_total) },
  { head: "Target", minor: true, cell: (s) => few(s.targets, s.targets_total) },
  { head: "Elsewhere", minor: true, cell: (s) => STATES.filter(([, name]) => name !== "ready" && s.nodes[name]).map(([, name]) => `${name} ${s.nodes[name]}`).join(", ") || "–" },
  { head: "Origin checksum", minor: true, cell: (s) => (s.origin_checksum ? el("code", { title: s.origin_checksum }, shortened(s.origin_checksum)) : state("warning", "none")) },
];

export const transferColumns = [
  { head: "Time", number: true, named: true, cell: (t) => span(t.age_s) },
  { head: "Type", cell: (t) => t.type },
  { head: "Stage", cell: (t) => state(t.stage === "queued" ? "queued" : "receiving", t.stage === "queued" ? "queued at its source" : "receiving") },
  { head: "Source", cell: (t) => (t.type === "origin" ? "origin" : el("a", { href: link("nodes", t.source), "data-key": `ts-${t.source}-${t.target}-${t.first_key}` }, t.source)) },
  { head: "Target", cell: (t) => el("a", { href: link("nodes", t.target), "data-key": `tt-${t.source}-${t.target}-${t.first_key}` }, t.target) },
  { head: "Shards", cell: (t) => (t.shards === 1 ? t.first_key : `${t.first_key} … ${t.last_key}`) },
  { head: "Bytes", number: true, cell: (t) => bytes(t.bytes) },
  { head: "Shard there", number: true, minor: true, cell: (t) => (t.shard_percent === null ? "–" : `${t.shard_percent} %`) },
  { head: "Source changed", number: true, minor: true, cell: (t) => (t.resourced ? count(t.resourced, "time") : "–") },
];

const failureColumns = [
  { head: "Shard", cell: (f) => f.key },
  { head: "Piece", number: true, cell: (f) => (f.piece === null ? "–" : String(f.piece)) },
  { head: "What", cell: (f) => f.detail },
  { head: "Expected", cell: (f) => (f.expected ? el("code", {}, f.expected) : "–") },
  { head: "Actual", cell: (f) => (f.actual ? el("code", {}, f.actual) : "–") },
  { head: "Source", cell: (f) => f.source },
  { head: "Done about it", cell: (f) => f.done },
];

const mendedColumns = [
  { head: "Shard", cell: (m) => m.key },
  { head: "When", cell: (m) => clock(m.at_unix_ms) },
  { head: "Piece", number: true, cell: (m) => (m.piece === null ? "–" : String(m.piece)) },
  { head: "Noticed by", cell: (m) => el("a", { href: link("nodes", m.node), "data-key": `mn-${m.at_unix_ms}-${m.node}` }, m.node) },
  { head: "Source", cell: (m) => m.source },
  { head: "What", cell: (m) => m.detail },
  { head: "Expected", minor: true, cell: (m) => (m.expected ? el("code", {}, m.expected) : "–") },
  { head: "Actual", minor: true, cell: (m) => (m.actual ? el("code", {}, m.actual) : "–") },
  { head: "Done about it", cell: (m) => m.done },
];

function histogram(bins, every) {
  const most = Math.max(1, ...bins.map((b) => b.shards));
  const name = (b) => (b.copies_from === b.copies_to ? `${b.copies_from}` : `${b.copies_from}–${b.copies_to}`);
  const row = (b) => {
    const inner = el("i", { class: b.copies_from === 0 ? "none" : null });
    inner.style.width = `${(100 * b.shards) / most}%`;
    return el("tr", {}, el("th", { scope: "row" }, name(b)), el("td", { class: "n" }, thousands(b.shards)), el("td", { class: "wide" }, el("div", { class: "bar", "aria-hidden": "true" }, inner)));
  };
  return el(
    "table",
    { class: "histogram" },
    el("caption", { class: "soft" }, `Shards by number of verified copies${every > 1 ? ` (1 of ${every} shards looked at)` : ""}`),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Copies"), el("th", { scope: "col", class: "n" }, "Shards"), el("th", { scope: "col" }, el("span", { class: "visually-hidden" }, "Share")))),
    el("tbody", {}, ...bins.map(row)),
  );
}

/** Those that it waits for and that are not named one by one. */
function others({ nodes_wanted, nodes_ready }, named) {
  const more = nodes_wanted - nodes_ready - named;
  return more > 0 ? el("li", { class: "soft" }, `and ${count(more, "more node")}, listed below`) : null;
}

function head(d) {
  const facts = [
    ["Size", `${bytes(d.bytes)} in ${count(d.shards, "shard")}`],
    ["Origin", el("code", {}, d.origin_url)],
    ["Origin checksums", d.origin_verified ? "every shard can be compared with the origin's own" : state("warning", "the origin has none for some shards: origin-unverified")],
    ["Piece checksums", d.indexed ? "known in advance (index)" : "learned by the first reader"],
    ["Read from origin", `${bytes(d.origin_bytes)} since this coordinator began${d.bytes ? ` (${(d.origin_bytes / d.bytes).toFixed(2)} × the dataset)` : ""}`],
    ["Moving now", `${count(d.transfers_from_origin, "order")} from the origin, ${thousands(d.transfers_from_peers)} from peers`],
    ["Pinned on", d.pinned_on.length ? d.pinned_on.slice(0, 8).join(", ") + (d.pinned_on.length > 8 ? ` and ${d.pinned_on.length - 8} more` : "") : "no node"],
    ["Digest", el("code", { class: "digest" }, d.digest)],
  ];
  return [
    el("p", { class: `headline ${{ failed: "error", staging: "waiting", ready: "ok", idle: "empty" }[d.verdict.state]}`, id: "headline" }, state(d.verdict.state, d.verdict.text)),
    d.verdict.waiting_for.length
      ? el(
          "ul",
          { class: "waits", "aria-label": "What it waits for" },
          ...d.verdict.waiting_for.slice(0, 5).map((b) => el("li", {}, el("a", { href: link("nodes", b.node), "data-key": `why-${b.node}` }, b.node), ` ${b.state}${b.reason ? `: ${b.reason}` : ""}`)),
          others(d.verdict, Math.min(5, d.verdict.waiting_for.length)),
        )
      : null,
    el("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
  ];
}

const MAP_NAMES = ["first_node", "nodes", "first_shard", "shards"];

export const dataset = {
  menu: "datasets",
  title: ({ argument }) => argument,
  cli: ({ argument }) => `millstream status ${argument} --watch`,
  sections: (context) => {
    const { argument, query, go } = context;
    const base = `datasets/${encodeURIComponent(argument)}`;
    const [shardsLimit, nodesLimit, transfersLimit] = limits();
    const mapQuery = new URLSearchParams(MAP_NAMES.filter((n) => query[n]).map((n) => [n, query[n]]));
    mapQuery.set("rows", narrow() ? "48" : "64");
    mapQuery.set("columns", String(columnsFor(innerWidth)));
    const mapWatch = `${base}/map?${mapQuery}`;
    const nodesWatch = asked(`${base}/nodes`, { q: query.nq, state: query.ns, offset: query.no }, ["q", "state", "offset"], nodesLimit);
    const shardsWatch = asked(`${base}/shards`, { ...query }, ["q", "state", "offset", "order"], shardsLimit);
    const transfersWatch = asked(`${base}/transfers`, { q: query.tq, state: query.ts, offset: query.to }, ["q", "state", "offset"], transfersLimit);
    const picture = new ShardMap();
    const zoomed = MAP_NAMES.some((n) => query[n]);
    const zoom = (to) => {
      if (to.shard) return go({ q: to.shard, offset: "" });
      go(Object.fromEntries(MAP_NAMES.map((n) => [n, String(to[n])])));
    };
    const renamed = (map) => (change) => go(Object.fromEntries(Object.entries(change).map(([k, v]) => [map[k] || k, v])));
    return [
      { watches: [base], render: ([d]) => head(d) },
      {
        watches: [base],
        render: ([d]) =>
          d.failures.total
            ? panel(`Failures (${d.failures.total})`, { id: "failures", json: base, note: partly(d.failures.items.length, d.failures.total) }, table("Failures", failureColumns, d.failures.items, { key: (f) => f.shard }))
            : d.shards_disputed
              ? panel("In doubt", { id: "doubt", json: base }, el("p", {}, state("warning", `${count(d.shards_disputed, "shard")} did not match and are read again by other nodes.`)))
              : el("span", { hidden: true }),
      },
      {
        watches: [base],
        render: ([d]) =>
          d.mended.length
            ? panel("Wrong bytes that nobody saw", { id: "mended", json: base, note: "noticed, thrown away and fetched again; newest first" }, table("Wrong bytes that nobody saw", mendedColumns, d.mended))
            : el("span", { hidden: true }),
      },
      { watches: [base], render: ([d]) => panel("Stages", { id: "stages", json: base }, table("Stages", stageColumns, d.stages, { empty: `None: millstream stage ${d.dataset}`, key: (s) => s.id })) },
      {
        watches: [mapWatch],
        render: ([m], { again }, box) => {
          const cover = m.nodes_per_row > 1 || m.shards_per_column > 1 ? `one cell is ${count(m.nodes_per_row, "node")} × ${count(m.shards_per_column, "shard")}` : "one cell is one node and one shard";
          const note = `${thousands(m.nodes)} of ${count(m.nodes_total, "node")}, ${thousands(m.shards)} of ${count(m.shards_total, "shard")}; ${cover}${m.sampled_every > 1 ? `; 1 of ${m.sampled_every} shards looked at` : ""}`;
          const tools = el(
            "span",
            { class: "tools" },
            zoomed ? el("button", { type: "button", "data-key": "map-out", onclick: () => go(Object.fromEntries(MAP_NAMES.map((n) => [n, ""]))) }, "Whole map") : null,
            el("button", { type: "button", "data-key": "map-save", onclick: () => picture.save() }, "Save picture"),
          );
          // A large table that nobody looks at is not built anew every second.
          const looked = box.querySelector('[data-key="map-table"]')?.open;
          const filled = (event) => event.target.open && !event.target.querySelector("table") && again();
          const rows = () => table(
            "Map as a table",
            [
              { head: m.nodes_per_row > 1 ? "Nodes" : "Node", cell: (r) => `${r.label}${r.down ? ` (${r.down} not connected)` : ""}` },
              ...STATES.map(([, name]) => ({ head: name, number: true, cell: (r) => thousands(r.counts[name]) })),
            ],
            m.rows,
            { empty: "No node has or shall have anything of it." },
          );
          return panel(
            "Map",
            { id: "map", json: mapWatch, tools, note },
            legend(m.totals),
            el("p", { class: "visually-hidden", id: "map-help" }, "Arrow keys move from cell to cell, Enter goes into a cell. The same as a table follows."),
            m.rows.length ? el("div", { class: "mapbox", "data-own": "map", "data-key": "map-place" }) : el("p", { class: "empty" }, "No node has or shall have anything of it: millstream stage " + m.dataset),
            el("details", { "data-key": "map-table", ontoggle: filled }, el("summary", { "data-key": "map-summary" }, "The map as a table"), looked ? rows() : null),
          );
        },
        drawn: ([m], box) => {
          const place = box.querySelector("[data-own]");
          if (place) picture.show(m, zoom, place);
        },
      },
      { watches: [base], render: ([d]) => panel("Availability", { id: "availability", json: base }, histogram(d.availability, d.sampled_every)) },
      {
        watches: [nodesWatch],
        render: ([page]) => {
          const tools = listTools({ page, query: { q: query.nq, state: query.ns }, states: ["absent", "receiving", "verifying", "failed", "ready"], label: "nodes", go: renamed({ q: "nq", state: "ns", offset: "no" }), limit: nodesLimit });
          return panel("Nodes", { id: "nodes", json: nodesWatch, note: "what it waits for first" }, tools, table("Nodes of the version", blockingColumns, page.items, { empty: "None.", key: (r) => r.node }));
        },
      },
      {
        watches: [transfersWatch],
        render: ([page]) => {
          const tools = listTools({ page, query: { q: query.tq, state: query.ts }, states: ["receiving", "queued", "origin", "peer"], label: "transfers", go: renamed({ q: "tq", state: "ts", offset: "to" }), limit: transfersLimit });
          return panel("Moving now", { id: "transfers", json: transfersWatch, note: "the oldest first" }, page.total ? tools : null, table("Transfers", transferColumns, page.items, { empty: "Nothing moves.", key: (t) => `${t.source}-${t.target}-${t.first_key}` }));
        },
      },
      {
        watches: [shardsWatch],
        render: ([page]) => {
          const tools = listTools({ page, query, states: STATES.map(([, name]) => name), label: "shards", go, limit: shardsLimit });
          const order = el(
            "select",
            { "aria-label": "Order of shards", "data-key": "order", onchange: (e) => go({ order: e.target.value, offset: "" }) },
            ...["rarest", "key", "size"].map((o) => el("option", { value: o, selected: (query.order || "rarest") === o }, o === "rarest" ? "rarest first" : `by ${o}`)),
          );
          tools.insertBefore(order, tools.children[2]);
          return panel("Shards", { id: "shards", json: shardsWatch }, tools, table("Shards", shardColumns, page.items, { empty: "None.", key: (s) => s.shard }));
        },
      },
      { render: () => el("p", {}, el("a", { href: link("events", "", { dataset: argument }) }, `Events about ${argument}`)) },
    ];
  },
};
