// Throughput by source, stacked, over the last minutes.

import { el, panel } from "./dom.js";
import { bytes, clock, rate } from "./format.js";
import uPlot from "./uplot.js";

const SOURCES = [
  { name: "S3", color: "--origin", dash: [] },
  { name: "RDMA", color: "--rdma", dash: [6, 3] },
  { name: "TCP", color: "--tcp", dash: [2, 2] },
  { name: "Local hits", color: "--local", dash: [8, 2, 2, 2] },
];

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Seconds that are missing are gaps in time, not in the line: nothing was measured, nothing is drawn. */
function columns(samples) {
  const times = Object.keys(samples).map(Number).sort((a, b) => a - b);
  // Stacked: each line is drawn on top of those below it.
  const upTo = (last) => times.map((t) => samples[t].slice(0, last + 1).reduce((sum, n) => sum + n, 0));
  return [times, ...SOURCES.map((_, i) => upTo(i))];
}

/** Steps between marks: whole seconds and minutes, and powers of two of bytes. */
const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120];
const BYTES = Array.from({ length: 45 }, (_, i) => 2 ** i);

export class Throughput {
  constructor() {
    this.plot = null;
    this.look = "";
  }

  /** Around the picture, and the figures as text. */
  panel({ samples }) {
    const place = el("div", { class: "chart", "data-own": "chart", role: "img", "aria-label": "Bytes per second by source over the last five minutes; the figures follow as text" });
    const note = "all nodes, last five minutes; stacked. Local hits: shards that readers wanted and found in place";
    return panel("Throughput by source", { id: "throughput", json: "throughput", note }, place, el("ul", { class: "legend" }, ...this.words(samples)));
  }

  draw({ samples }, box) {
    const data = columns(samples);
    const place = box.querySelector("[data-own]");
    const width = Math.max(240, Math.min(box.clientWidth - 26, 1200));
    const look = `${css("--ink")}${css("--line")}${width}`;
    if (this.plot && this.look === look && place.contains(this.plot.root)) {
      this.plot.setData(data);
      return;
    }
    this.look = look;
    this.plot?.destroy();
    this.plot = new uPlot(this.options(width), data, place);
  }

  options(width) {
    const ink = css("--soft");
    const axis = { stroke: ink, grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1 } };
    const line = ({ name, color, dash }) => ({ label: name, stroke: css(color), fill: `${css(color)}55`, width: 1.5, dash, points: { show: false } });
    return {
      width,
      height: 180,
      padding: [8, 30, 0, 0],
      legend: { show: false },
      cursor: { drag: { x: false, y: false } },
      scales: { x: { time: true }, y: { range: (u, min, max) => [0, Math.max(max * 1.1, 1024)] } },
      axes: [{ ...axis, space: 75, incrs: SECONDS, values: (u, ticks) => ticks.map((t) => clock(1000 * t).slice(-8)) }, { ...axis, size: 88, incrs: BYTES, values: (u, ticks) => ticks.map((v) => (v ? `${bytes(v)}/s` : "0")) }],
      series: [{}, ...SOURCES.map(line)],
      // The fill of each is down to the one below it.
      bands: [{ series: [2, 1] }, { series: [3, 2] }, { series: [4, 3] }],
    };
  }

  words(samples) {
    const last = Object.keys(samples).map(Number).sort((a, b) => a - b).slice(-10);
    const mean = (i) => last.reduce((sum, t) => sum + samples[t][i], 0) / Math.max(1, last.length);
    return SOURCES.map(({ name }, i) => el("li", {}, el("i", { class: `swatch ${name.toLowerCase().replace(" ", "-")}`, "aria-hidden": "true" }), `${name}: ${rate(Math.round(mean(i)))} over the last 10 s`));
  }
}
