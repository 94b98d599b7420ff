// One node: disk, links, what it moves, which versions it has, and where it differs from the others.

import { bar, el, link, narrow, panel, partly, state, table } from "./dom.js";
import { bytes, count, percent, rate, span, thousands } from "./format.js";
import { transferColumns } from "./dataset.js";
import { alarmList } from "./overview.js";

const datasetColumns = [
  { head: "Dataset", cell: (d) => el("a", { href: link("datasets", d.dataset), "data-key": `nd-${d.dataset}` }, d.dataset) },
  { head: "State", cell: (d) => state(d.state) },
  { head: "Why", cell: (d) => d.reason || "–" },
  { head: "Bytes", cell: (d) => el("div", {}, `${percent(d.bytes_ready, d.bytes_wanted)} of ${bytes(d.bytes_wanted)}`, bar(d.bytes_ready, d.bytes_wanted, `Bytes of ${d.dataset}`)) },
  { head: "Shards", number: true, cell: (d) => `${d.shards_ready} of ${d.shards_wanted}` },
  { head: "Pin", minor: true, cell: (d) => (d.pinned ? "pinned" : "–") },
];

const KEPT = { pin: "pin, until it is unpinned", lease: "lease, as long as the process lives", reader: "reader, as long as it reads", job: "job, as long as it runs" };

const keeperColumns = [
  { head: "Dataset", cell: (k) => el("a", { href: link("datasets", k.dataset), "data-key": `k-${k.dataset}-${k.kind}-${k.by}` }, k.dataset) },
  { head: "Kept by", cell: (k) => `${k.by || "somebody who did not say"}${k.count > 1 ? ` (${k.count} times)` : ""}` },
  { head: "How long", cell: (k) => KEPT[k.kind] },
];

const railColumns = [
  { head: "Device", cell: (r) => (r.port ? `${r.device}, port ${r.port}` : r.device) },
  { head: "State", cell: (r) => (r.state && r.state !== "up" ? state("warning", `not used now: ${r.state}`) : r.state) },
  { head: "Kind", cell: (r) => r.kind },
  { head: "Address", minor: true, cell: (r) => el("code", {}, r.gid) },
  { head: "MTU", number: true, minor: true, cell: (r) => bytes(r.mtu_bytes) },
  { head: "Queue pairs", number: true, cell: (r) => String(r.queue_pairs) },
  { head: "Received", number: true, cell: (r) => bytes(r.received_bytes) },
  { head: "Received by the device", number: true, cell: (r) => bytes(r.wire_received_bytes) },
  { head: "Sent", number: true, cell: (r) => bytes(r.sent_bytes) },
  { head: "Sent by the device", number: true, cell: (r) => bytes(r.wire_sent_bytes) },
  {
    head: "Its counters",
    minor: true,
    cell: (r) => {
      const moved = Object.entries(r.counters).filter(([, n]) => n);
      return el("details", { "data-key": `counters-${r.device}-${r.port}` }, el("summary", { "data-key": `counters-s-${r.device}-${r.port}` }, count(moved.length, "counter")), ...moved.map(([name, n]) => el("div", {}, el("code", {}, name), ` ${thousands(n)}`)));
    },
  },
];

function carriers(n) {
  const why = n.rdma_reason ? state("warning", `RDMA is not used: ${n.rdma_reason}`) : null;
  const words = n.transports.length ? `Pieces travel over ${n.transports.join(" and ")}.` : "Not known yet.";
  const bytesBy = `Received: S3 ${bytes(n.received_bytes.origin)} · RDMA ${bytes(n.received_bytes.rdma)} · TCP ${bytes(n.received_bytes.tcp)}. Sent: RDMA ${bytes(n.sent_bytes.rdma)} · TCP ${bytes(n.sent_bytes.tcp)}.`;
  return [el("p", {}, words, " ", why), el("p", { class: "soft" }, bytesBy), table("Rails", railColumns, n.rails, { empty: "No rails: no RDMA device is in use.", key: (r) => `${r.device}-${r.port}` })];
}

const linkColumns = (head) => [
  { head, cell: (l) => (l.peer === "origin" ? "origin" : el("a", { href: link("nodes", l.peer), "data-key": `${head}-${l.peer}` }, l.peer)) },
  { head: "Rate", number: true, cell: (l) => rate(l.bytes_per_s) },
  { head: "Orders now", number: true, cell: (l) => String(l.transfers) },
  { head: "By RDMA", number: true, cell: (l) => (l.peer === "origin" ? "–" : bytes(l.rdma_bytes)) },
  { head: "By TCP", number: true, cell: (l) => (l.peer === "origin" ? "–" : bytes(l.tcp_bytes)) },
];

const measure = (c, v) =>
  ({ bytes_per_s: () => rate(Math.round(v)), share: () => `${Math.round(100 * v)} %`, factor: () => v.toFixed(1), count: () => String(v) })[c.unit]();

const comparedColumns = [
  { head: "Measure", cell: (c) => c.what },
  { head: "This node", number: true, cell: (c) => measure(c, c.value) },
  { head: "Median of nodes that are up", number: true, cell: (c) => measure(c, c.median) },
  { head: "Verdict", cell: (c) => (c.outlier ? state("warning", "stands out") : state("ok", "like the others")) },
];

function disk(d) {
  const free = Math.max(0, d.capacity_bytes - d.used_bytes);
  const other = Math.max(0, d.used_bytes - d.pinned_bytes - d.partial_bytes);
  const classes = [["pinned or leased", d.pinned_bytes], ["may be evicted", other], ["on its way (partial)", d.partial_bytes], ["free of the quota", free]];
  const speed = d.write_bytes_per_s ? rate(d.write_bytes_per_s) : "not measured yet";
  return el(
    "div",
    {},
    el("p", {}, `${bytes(d.used_bytes)} of ${bytes(d.capacity_bytes)} (${percent(d.used_bytes, d.capacity_bytes)})`),
    bar(d.used_bytes, d.capacity_bytes, "Disk used"),
    el("dl", { class: "facts" }, ...classes.flatMap(([name, n]) => [el("dt", {}, name), el("dd", {}, bytes(n))]), el("dt", {}, "while it is written to"), el("dd", {}, speed)),
  );
}

function facts(n) {
  const labels = Object.entries(n.labels).map(([k, v]) => `${k}=${v}`).join(", ");
  const rows = [
    ["Address", el("code", {}, n.address || "–")],
    ["Its own metrics", n.http ? el("code", {}, `http://${n.http}/metrics`) : "–"],
    ["Labels", labels || "none"],
    ["I/O engine", `${n.io || "–"}${n.io_reason ? ` (${n.io_reason})` : ""}`],
    ["Agent", n.agent_version || "–"],
    ["Receives", rate(n.rate_bytes_per_s.in)],
    ["Sends", rate(n.rate_bytes_per_s.out)],
    ["Link, while peers send", n.link_bytes_per_s ? rate(n.link_bytes_per_s) : "not measured yet"],
    ["Local hits", `${bytes(n.local_hit_bytes)} of shards that readers wanted and found in place`],
    ["Ordered, not done", bytes(n.outstanding_bytes)],
    ["Checksum failures", String(n.checksum_failures)],
  ];
  return el("dl", { class: "facts" }, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

/** What fits; the heading says of how many, and the JSON has them. */
const first = (items) => items.slice(0, narrow() ? 4 : 15);

export const node = {
  menu: "nodes",
  title: ({ argument }) => argument,
  cli: ({ argument }) => `millstream status --watch --node ${argument}`,
  sections: ({ argument }) => {
    const base = `nodes/${encodeURIComponent(argument)}`;
    const about = (render) => ({ watches: [base], render });
    return [
      about(([n]) => {
        const heard = n.last_seen_s === null ? "never heard of" : n.state === "up" ? "heard of within the last seconds" : `silent for ${span(Math.round(n.last_seen_s))}`;
        const tone = { up: "ok", suspect: "waiting", down: "error" }[n.state];
        return el("p", { class: `headline ${tone}`, id: "headline" }, state(n.state, `${n.state} · ${heard}`));
      }),
      about(([n], context) => (n.alarms.length ? panel(`Alarms (${n.alarms.length})`, { id: "alarms", json: base }, alarmList(n.alarms, context)) : el("span", { hidden: true }))),
      { ...about(([n]) => [panel("Disk", { id: "disk", json: base }, disk(n.disk)), panel("Facts", { id: "facts", json: base }, facts(n))]), class: "two" },
      about(([n]) => panel("Datasets here", { id: "datasets", json: base, note: partly(first(n.datasets).length, n.totals.datasets) }, table("Datasets on this node", datasetColumns, first(n.datasets), { empty: "Nothing is here, and nothing is to come.", key: (d) => d.dataset }))),
      about(([n]) => panel("Pinned or in use", { id: "keepers", json: base, note: partly(n.keepers.length, n.totals.keepers) || "what keeps a version here" }, table("Pinned or in use", keeperColumns, n.keepers, { empty: "Nobody keeps anything here: all of it may be evicted, but for last copies.", key: (k) => `${k.dataset}-${k.kind}-${k.by}` }))),
      about(([n]) => panel("Carriers and rails", { id: "carriers", json: base }, ...carriers(n))),
      {
        ...about(([n]) => [
          panel("Fed by", { id: "links-in", json: base, note: partly(first(n.links_in).length, n.totals.links_in) }, table("Fed by", linkColumns("From"), first(n.links_in), { empty: "Nobody sends to it now." })),
          panel("Feeds", { id: "links-out", json: base, note: partly(first(n.links_out).length, n.totals.links_out) }, table("Feeds", linkColumns("To"), first(n.links_out), { empty: "It sends to nobody now." })),
        ]),
        class: "two",
      },
      about(([n]) => panel("Moving now", { id: "transfers", json: base, note: partly(first(n.transfers).length, n.totals.transfers) || "the oldest first" }, table("Transfers", transferColumns, first(n.transfers), { empty: "Nothing moves.", key: (t) => `${t.source}-${t.target}-${t.first_key}` }))),
      about(([n]) => panel("Compared with the others", { id: "compared", json: base }, table("Compared", comparedColumns, n.compared, {}))),
      about(([n]) =>
        panel(
          "Fallbacks",
          { id: "fallbacks", json: base },
          table("Fallbacks", [
            { head: "Instead of", cell: (f) => f.from },
            { head: "It uses", cell: (f) => f.to },
            { head: "Because", cell: (f) => f.reason },
            { head: "Times", number: true, cell: (f) => String(f.count) },
          ], n.fallbacks, { empty: "None: everything works as it was meant to." }),
        ),
      ),
      about(([n]) =>
        panel(
          "Last errors",
          { id: "errors", json: base, note: "the latest first" },
          table("Last errors", [
            { head: "Error", cell: (e) => e.text },
            { head: "Times", number: true, cell: (e) => String(e.count) },
          ], n.errors, { empty: "None." }),
        ),
      ),
      { render: () => el("p", {}, el("a", { href: link("events", "", { node: argument }) }, `Events about ${argument}`)) },
    ];
  },
};
