// Everything at a glance: alarms first, then what is where, how far stages are and what bounds them.

import { Throughput } from "./chart.js";
import { bar, el, link, panel, state, table } from "./dom.js";
import { bytes, clock, count, percent, rate, ratio, since, span, thousands } from "./format.js";

export function alarmList(alarms, context) {
  if (!alarms.length) return el("p", { class: "empty" }, state("ok", "No alarms."));
  const item = (a) =>
    el(
      "li",
      { class: `alarm ${a.severity}`, "data-alarm": a.id },
      el(
        "div",
        {},
        state(a.severity === "error" ? "error" : "warning", a.severity),
        " ",
        el("span", { class: "text" }, a.text),
        el("span", { class: "soft" }, ` · for ${since(a.since_unix_s, context.now())}`),
      ),
      el(
        "div",
        { class: "next" },
        a.next ? `Next: ${a.next}` : "",
        a.node ? el("a", { href: link("nodes", a.node), "data-key": `alarm-node-${a.id}` }, a.node) : null,
        a.dataset ? el("a", { href: link("datasets", a.dataset), "data-key": `alarm-ds-${a.id}` }, a.dataset) : null,
      ),
    );
  return el("ul", { class: "alarms" }, ...alarms.map(item));
}

export function verdictCell(d) {
  const v = d.verdict;
  return el(
    "div",
    {},
    state(v.state, v.text),
    ...v.waiting_for.map((b) =>
      el("div", { class: "soft" }, el("a", { href: link("nodes", b.node), "data-key": `w-${d.dataset}-${b.node}` }, b.node), ` ${b.state}${b.reason ? `: ${b.reason}` : ""}`),
    ),
    v.waiting_for.length && v.nodes_wanted - v.nodes_ready > v.waiting_for.length ? el("div", { class: "soft" }, `and ${count(v.nodes_wanted - v.nodes_ready - v.waiting_for.length, "more node")}`) : null,
  );
}

export const datasetColumns = [
  { head: "Dataset", cell: (d) => el("a", { href: link("datasets", d.dataset), "data-key": `d-${d.dataset}` }, d.dataset) },
  { head: "Where", cell: verdictCell },
  { head: "Kind", minor: true, cell: (d) => d.kind },
  { head: "Shards", number: true, cell: (d) => thousands(d.shards) },
  { head: "Size", number: true, cell: (d) => bytes(d.bytes) },
  { head: "Origin checksums", minor: true, cell: (d) => (d.origin_verified ? "all compared" : state("warning", "none to compare")) },
];

export const stageColumns = [
  { head: "Stage", named: true, cell: (s) => String(s.id) },
  { head: "Dataset", cell: (s) => el("a", { href: link("datasets", s.dataset), "data-key": `s-${s.id}` }, s.dataset) },
  {
    head: "Progress",
    cell: (s) =>
      el(
        "div",
        {},
        state(s.state, s.placement === "window" ? `${s.state} · as readers need it` : `${s.state} · ${percent(s.bytes_ready, s.bytes_total)} of ${bytes(s.bytes_total)}`),
        s.state === "running" && s.bytes_total ? bar(s.bytes_ready, s.bytes_total, `Stage ${s.id}`) : null,
        ...s.lacking.map((b) => el("div", {}, state("warning", s.state === "done" ? "now missing on " : "missing on "), el("a", { href: link("nodes", b.node), "data-key": `l-${s.id}-${b.node}` }, b.node), `: ${b.reason || b.state}`)),
        s.nodes_lacking > s.lacking.length ? el("div", { class: "soft" }, `and on ${count(s.nodes_lacking - s.lacking.length, "more node")}`) : null,
      ),
  },
  { head: "Nodes", number: true, minor: true, cell: (s) => String(s.nodes.length) },
  {
    head: "Left",
    cell: (s) => (s.state === "running" ? el("span", {}, span(s.eta_s), el("div", { class: "soft" }, s.eta_basis)) : "–"),
  },
  {
    head: "Time",
    number: true,
    cell: (s) => el("span", {}, span(s.elapsed_s), s.counted_since ? el("div", { class: "soft", title: `asked for at ${s.started_at}; the coordinator was restarted, or the stage lost nodes` }, "since ", clock(Date.parse(s.counted_since))) : null),
  },
  {
    head: "T/T*",
    number: true,
    cell: (s) => el("span", { title: "time over its lower bound, from measured rates" }, ratio(s.ratio_to_bound), s.bound_s === null ? null : el("div", { class: "soft" }, `${s.bound_by} · T* ${span(s.bound_s)}${s.state === "running" ? ", so far" : ""}`)),
  },
  { head: "S3 ÷ dataset", number: true, cell: (s) => (s.dataset_bytes ? ratio(s.origin_bytes / s.dataset_bytes) : "–") },
  { head: "Found in place", number: true, minor: true, cell: (s) => bytes(s.bytes_found) },
];

function tiles(t) {
  const tile = (name, value, note) => el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, value, note ? el("span", { class: "soft" }, note) : null));
  const r = t.rate_bytes_per_s;
  const figures = el(
    "dl",
    { class: "tiles" },
    tile("Nodes up", `${t.nodes_up} of ${t.nodes}`),
    tile("Running stages", String(t.stages_running)),
    tile("Arriving now", rate(r.origin + r.rdma + r.tcp), `S3 ${rate(r.origin)} · RDMA ${rate(r.rdma)} · TCP ${rate(r.tcp)}`),
    tile("Local hits", rate(r.local), `${bytes(t.received_bytes.local)} in all: shards that readers found in place`),
    tile("S3 ÷ dataset", ratio(t.origin_over_dataset), "of what is staged below, since this coordinator began; 1.00 is once per cluster"),
    tile("Found by stages", bytes(t.found_bytes), "there already when the stages shown below began"),
    tile("Disks", percent(t.used_bytes, t.capacity_bytes), `${bytes(t.used_bytes)} of ${bytes(t.capacity_bytes)}`),
  );
  return panel("At a glance", { id: "glance", json: "overview" }, figures);
}

export const overview = {
  menu: "overview",
  title: () => "Overview",
  cli: () => "millstream status --watch",
  sections: () => {
    const chart = new Throughput();
    const shown = (page) => (page.matched > page.items.length ? `showing ${page.items.length} of ${page.matched}` : "");
    return [
      {
        watches: ["overview"],
        render: ([o]) => el("p", { class: `headline ${o.headline.state}`, id: "headline" }, state({ waiting: "staging", empty: "idle" }[o.headline.state] || o.headline.state, o.headline.text)),
      },
      {
        watches: ["overview"],
        render: ([o], context) =>
          panel(o.alarms.length ? `Alarms (${o.alarms.length})` : "Alarms", { id: "alarms", json: "alarms" }, alarmList(o.alarms, context)),
      },
      { watches: ["overview"], render: ([o]) => tiles(o.totals) },
      {
        watches: ["overview"],
        render: ([o]) =>
          panel(
            "Datasets and checkpoints",
            { id: "datasets", json: "datasets", note: shown(o.datasets) },
            table("Datasets and checkpoints", datasetColumns, o.datasets.items, { empty: "None yet: millstream dataset add NAME URL", key: (d) => d.dataset }),
          ),
      },
      {
        watches: ["overview"],
        render: ([o]) =>
          panel(
            "Stages",
            { id: "stages", json: "stages", note: shown(o.stages) },
            table("Stages", stageColumns, o.stages.items, { empty: "None yet: millstream stage NAME@VERSION", key: (s) => s.id }),
          ),
      },
      { watches: ["throughput"], render: ([t]) => chart.panel(t), drawn: ([t], box) => chart.draw(t, box) },
      {
        watches: ["overview"],
        render: ([o]) => {
          const c = o.coordinator;
          return el("p", { class: "soft about" }, `coordinator ${c.id} · millstream ${c.version} · up ${span(c.uptime_s)} · catalog in ${c.state_store} · ${count(o.totals.datasets, "version")} · as of ${clock(o.at_unix_ms)}`);
        },
      },
    ];
  },
};
