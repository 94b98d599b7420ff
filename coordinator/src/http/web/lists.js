// Lists: all datasets, nodes, jobs, events. Paged and filtered by the coordinator.

import { bar, el, link, listTools, narrow, panel, state, table } from "./dom.js";
import { bytes, clock, count, percent, rate, span } from "./format.js";
import { datasetColumns } from "./overview.js";

/** The query of a list as the API takes it. */
export function asked(path, query, names, limit) {
  const q = new URLSearchParams(names.filter((n) => query[n]).map((n) => [n, query[n]]));
  q.set("limit", String(limit));
  return `${path}?${q}`;
}

/** The command that shows the same part of a list: any document of the API, by its path. */
export function viewCommand(path, query, names) {
  const q = new URLSearchParams(names.filter(([from]) => query[from]).map(([from, to]) => [to, query[from]]));
  return `millstream status --view '${path}${q.size ? `?${q.toString().replaceAll("'", "%27")}` : ""}'`;
}

const PAGED = [["q", "q"], ["state", "state"], ["offset", "offset"]];
const plain = (query) => !PAGED.some(([from]) => query[from]);

/** Rows of a page: cards are taller. */
const limit = () => (narrow() ? 12 : 50);

export const datasets = {
  menu: "datasets",
  title: () => "Datasets",
  cli: ({ query }) => (plain(query) ? "millstream dataset ls" : viewCommand("datasets", query, PAGED)),
  sections: ({ query }) => {
    const watch = asked("datasets", query, ["q", "state", "offset"], limit());
    return [
      {
        watches: [watch],
        render: ([page], { go }) => {
          const tools = listTools({ page, query, states: ["failed", "staging", "ready", "idle"], label: "datasets", go, limit: limit() });
          return panel("Datasets and checkpoints", { json: watch, id: "list" }, tools, table("Datasets", datasetColumns, page.items, { empty: "None.", key: (d) => d.dataset }));
        },
      },
    ];
  },
};

export const nodeColumns = [
  { head: "Node", cell: (n) => el("a", { href: link("nodes", n.node), "data-key": `n-${n.node}` }, n.node) },
  {
    head: "State",
    cell: (n) => el("div", {}, state(n.state), n.state !== "up" && n.last_seen_s !== null ? el("div", { class: "soft" }, `silent for ${span(Math.round(n.last_seen_s))}`) : null, n.quarantined_s > 0 ? el("div", {}, state("warning", `avoided for ${span(Math.round(n.quarantined_s))}`)) : null),
  },
  {
    head: "Disk",
    cell: (n) => el("div", {}, `${bytes(n.disk.used_bytes)} of ${bytes(n.disk.capacity_bytes)} (${percent(n.disk.used_bytes, n.disk.capacity_bytes)})`, bar(n.disk.used_bytes, n.disk.capacity_bytes, `Disk of ${n.node}`)),
  },
  { head: "In", number: true, cell: (n) => rate(n.rate_bytes_per_s.in) },
  { head: "Out", number: true, cell: (n) => rate(n.rate_bytes_per_s.out) },
  { head: "From S3", number: true, minor: true, cell: (n) => bytes(n.received_bytes.origin) },
  { head: "From peers", number: true, minor: true, cell: (n) => bytes(n.received_bytes.tcp + n.received_bytes.rdma) },
  { head: "Carriers", minor: true, cell: (n) => n.transports.join(", ") || "–" },
  { head: "I/O", minor: true, cell: (n) => el("div", {}, n.io || "–", n.io_reason ? el("div", { class: "soft" }, n.io_reason) : null) },
  {
    head: "Trouble",
    cell: (n) => {
      const parts = [];
      if (n.checksum_failures) parts.push(state("error", count(n.checksum_failures, "bad checksum")));
      for (const f of n.fallbacks) parts.push(state("warning", `${f.from} → ${f.to}`));
      if (n.last_errors.length) parts.push(el("span", { class: "soft" }, count(n.last_errors.length, "error")));
      return parts.length ? el("div", {}, ...parts.map((p) => el("div", {}, p))) : "–";
    },
  },
];

export const nodes = {
  menu: "nodes",
  title: () => "Nodes",
  cli: ({ query }) => (plain(query) ? "millstream status" : viewCommand("nodes", query, PAGED)),
  sections: ({ query }) => {
    const watch = asked("nodes", query, ["q", "state", "offset"], limit());
    return [
      {
        watches: [watch],
        render: ([page], { go }) => {
          const tools = listTools({ page, query, states: ["up", "suspect", "down"], label: "nodes", go, limit: limit() });
          return panel("Nodes", { json: watch, id: "list" }, tools, table("Nodes", nodeColumns, page.items, { empty: "None.", key: (n) => n.node }));
        },
      },
    ];
  },
};

const jobColumns = [
  { head: "Job", cell: (j) => el("span", {}, j.job, j.name ? el("div", { class: "soft" }, `${j.name}${j.user ? `, ${j.user}` : ""}`) : null) },
  { head: "State", cell: (j) => state(j.state === "waiting" ? "waiting" : j.state) },
  { head: "Why", cell: (j) => j.reason || "–" },
  {
    head: "Datasets",
    cell: (j) => el("div", {}, ...j.datasets.map((d) => el("div", {}, el("a", { href: link("datasets", d.dataset), "data-key": `j-${j.job}-${d.dataset}` }, d.dataset), ` ready on ${d.nodes_ready} of ${d.nodes_wanted}`))),
  },
  {
    head: "Blocking nodes",
    cell: (j) => {
      const blocking = j.datasets.flatMap((d) => d.blocking);
      const more = j.datasets.reduce((sum, d) => sum + d.nodes_wanted - d.nodes_ready, 0) - blocking.length;
      const each = (b) => el("div", {}, el("a", { href: link("nodes", b.node), "data-key": `j-${j.job}-${b.node}` }, b.node), ` ${b.state}: ${b.reason}`);
      return blocking.length ? el("div", {}, ...blocking.map(each), more > 0 ? el("div", { class: "soft" }, `and ${count(more, "more node")}`) : null) : "–";
    },
  },
];

export const jobs = {
  menu: "jobs",
  title: () => "Jobs",
  cli: ({ query }) => viewCommand("jobs", query, PAGED),
  sections: ({ query }) => {
    const watch = asked("jobs", query, ["q", "state", "offset"], limit());
    return [
      {
        watches: [watch],
        render: ([page], { go }) => {
          const tools = listTools({ page, query, states: ["waiting", "failed", "ready", "ended"], label: "jobs", go, limit: limit() });
          const empty = "No job has asked for data. Jobs appear here when the scheduler's hooks are installed; without them, stages show the same.";
          return panel("Jobs", { json: watch, id: "list" }, tools, table("Jobs", jobColumns, page.items, { empty, key: (j) => j.job }));
        },
      },
    ];
  },
};

export const KINDS = [
  "staged", "sealed", "stage-done", "stage-failed", "fell-back", "quarantined", "checksum", "discarded", "lost", "repaired", "shard-failed",
  "refused", "evicted", "lease-expired", "node-up", "node-suspect", "node-down", "added", "removed", "job-opened", "job-ended", "pinned", "unpinned", "went-direct", "coordinator",
];

export const eventColumns = [
  { head: "Time", cell: (e) => el("time", { datetime: new Date(e.at_unix_ms).toISOString() }, clock(e.at_unix_ms)) },
  { head: "Severity", cell: (e) => state(e.severity) },
  { head: "Kind", cell: (e) => e.kind },
  { head: "What", cell: (e) => e.text },
  {
    head: "About",
    cell: (e) => el("span", {}, e.dataset ? el("a", { href: link("datasets", e.dataset), "data-key": `ed-${e.sequence}` }, e.dataset) : null, e.dataset && e.node ? " " : null, e.node ? el("a", { href: link("nodes", e.node), "data-key": `en-${e.sequence}` }, e.node) : null, !e.dataset && !e.node ? "–" : null),
  },
];

export const events = {
  menu: "events",
  title: () => "Events",
  cli: ({ query }) => viewCommand("events", query, [["q", "q"], ["state", "kind"], ["severity", "severity"], ["node", "node"], ["dataset", "dataset"], ["offset", "offset"]]),
  sections: ({ query }) => {
    const named = { ...query, kind: query.state };
    const watch = asked("events", named, ["q", "kind", "severity", "node", "dataset", "offset"], limit());
    return [
      {
        watches: [watch],
        render: ([page], { go }) => {
          const tools = listTools({ page, query, states: KINDS, label: "events", go, limit: limit(), by: "text", what: "kind" });
          const severity = el(
            "select",
            { "aria-label": "Show events of severity", "data-key": "severity", onchange: (e) => go({ severity: e.target.value, offset: "" }) },
            ...["", "info", "warning", "error"].map((s) => el("option", { value: s, selected: (query.severity || "") === s }, s || "any severity")),
          );
          tools.insertBefore(severity, tools.children[2]);
          for (const about of ["node", "dataset"]) {
            if (query[about]) tools.append(el("button", { type: "button", "data-key": `un-${about}`, onclick: () => go({ [about]: "", offset: "" }) }, `only ${query[about]} ✕`));
          }
          return panel("Events", { json: watch, id: "list", note: "newest first; kept over restarts, up to 10,000" }, tools, table("Events", eventColumns, page.items, { empty: "None.", key: (e) => e.sequence }));
        },
      },
    ];
  },
};
