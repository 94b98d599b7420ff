// Nodes by shards as a picture: every cell says by shape and colour where things stand; by keyboard, too.

import { el, say } from "./dom.js";
import { count, thousands } from "./format.js";

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Letters of the API, in the order of the legend. */
export const STATES = [
  ["o", "ready", "verified and visible"],
  ["v", "verifying", "all bytes are there"],
  ["r", "receiving", "some bytes are there or on their way"],
  ["q", "queued", "wanted, nothing is on its way"],
  ["m", "missing", "not there, and not to come"],
  ["b", "bad", "failed, or in doubt and read again"],
];
const NAMES = Object.fromEntries(STATES.map(([letter, name]) => [letter, name]));

/** One cell. The fill from below is what is ready; the shape is the rest. */
function drawCell(g, letter, digit, x, y, w, h, c) {
  const ready = letter === "o" ? 1 : digit / 10;
  const gap = w > 5 && h > 5 ? 1 : 0;
  [w, h] = [w - gap, h - gap];
  g.fillStyle = c.bg;
  g.fillRect(x, y, w, h);
  if (letter === "b") g.fillStyle = c.bad;
  else if (letter === "r") g.fillStyle = c.receiving;
  else if (letter === "v") g.fillStyle = c.verifying;
  else if (letter === "q") g.fillStyle = c.queued;
  else g.fillStyle = c.missing;
  if (letter !== "o") g.fillRect(x, y, w, h);
  if (ready > 0) {
    g.fillStyle = c.ready;
    const full = Math.max(1, Math.round(h * ready));
    g.fillRect(x, y + h - full, w, full);
  }
  if (w < 6 || h < 6) return;
  g.strokeStyle = letter === "q" || letter === "m" ? c.soft : c.on;
  g.lineWidth = Math.max(1, Math.min(2, w / 8));
  g.beginPath();
  const [l, r, t, b] = [x + w * 0.25, x + w * 0.75, y + h * 0.25, y + h * 0.75];
  if (letter === "b") {
    g.moveTo(l, t); g.lineTo(r, b); g.moveTo(r, t); g.lineTo(l, b);
  } else if (letter === "r") {
    g.moveTo(x + w / 2, t); g.lineTo(x + w / 2, b); g.moveTo(l, y + h / 2); g.lineTo(x + w / 2, b); g.lineTo(r, y + h / 2);
  } else if (letter === "v") {
    g.moveTo(l, y + h / 2); g.lineTo(x + w * 0.45, b); g.lineTo(r, t);
  } else if (letter === "q") {
    g.arc(x + w / 2, y + h / 2, Math.min(w, h) * 0.22, 0, 7);
  }
  g.stroke();
}

function colors() {
  return {
    bg: css("--card"), ink: css("--ink"), soft: css("--soft"), on: css("--on-fill"), ready: css("--ready"), receiving: css("--receiving"),
    verifying: css("--verifying"), queued: css("--queued"), missing: css("--missing"), bad: css("--bad-fill"), focus: css("--focus"),
  };
}

/** What labels take of a map of that width. */
const labels = (width) => (width < 600 ? 84 : 150);

/** As many columns as leave room for the shapes in the cells: colour is never the only signal. */
export function columnsFor(pageWidth) {
  const width = Math.min(pageWidth, 1400) - 70;
  return Math.max(16, Math.min(128, Math.floor((width - labels(width)) / 8)));
}

export class ShardMap {
  constructor() {
    this.cursor = [0, 0];
    this.canvas = el("canvas", {
      class: "map", tabindex: 0, role: "application", "data-key": "map-canvas", "aria-describedby": "map-help", "aria-roledescription": "map of nodes by shards",
      onkeydown: (e) => this.key(e), onmousemove: (e) => this.point(e), onclick: (e) => this.click(e), onfocus: () => this.draw(), onblur: () => this.draw(),
      onmouseleave: () => this.tell(null),
    });
    this.told = el("p", { class: "told", "aria-hidden": "true" }, " ");
  }

  /** Shows a map in its place on the page. */
  show(map, zoom, place) {
    this.map = map;
    this.zoom = zoom;
    this.canvas.setAttribute("aria-label", this.summary());
    if (this.canvas.parentElement !== place) place.replaceChildren(this.canvas, this.told);
    this.draw();
  }

  summary() {
    const t = this.map.totals;
    return `${count(this.map.nodes, "node")} by ${count(this.map.shards, "shard")}: ${STATES.map(([, name]) => `${name} ${t[name]}`).join(", ")}`;
  }

  shape(width) {
    const { rows, columns } = this.map;
    const label = labels(width);
    // Whole pixels: one cell is painted again without traces on those beside it.
    const w = Math.max(2, Math.min(28, Math.floor((width - label) / Math.max(1, columns.length))));
    const h = Math.max(6, Math.min(24, Math.floor(560 / Math.max(1, rows.length))));
    return { label, w, h, width, height: h * rows.length };
  }

  draw() {
    if (!this.map || !this.canvas.parentElement) return;
    const shape = (this.size = this.shape(Math.max(240, this.canvas.parentElement.clientWidth - 2)));
    const scale = devicePixelRatio || 1;
    const c = colors();
    const focused = document.activeElement === this.canvas;
    const look = JSON.stringify([shape, scale, c, this.map.rows.map((r) => [r.label, r.down])]);
    const g = this.canvas.getContext("2d");
    // Painting all is the largest part of an update: where only cells changed, only those are painted.
    if (focused || this.drawn?.look !== look) {
      this.canvas.width = shape.width * scale;
      this.canvas.height = Math.max(8, shape.height) * scale;
      this.canvas.style.width = `${shape.width}px`;
      this.canvas.style.height = `${Math.max(8, shape.height)}px`;
      g.scale(scale, scale);
      this.drawn = { look, rows: [], looks: new Map() };
      this.paintLabels(g, shape, c, 0);
    }
    this.paintCells(g, shape, c, 0, scale, this.drawn);
    if (!focused) return;
    const [row, column] = this.cursor;
    g.strokeStyle = c.focus;
    g.lineWidth = 2;
    g.strokeRect(shape.label + column * shape.w, row * shape.h, shape.w, shape.h);
    this.drawn.look = "with a cursor";
  }

  paintLabels(g, { label, h }, c, top) {
    g.font = `${Math.min(12, Math.max(9, h - 2))}px system-ui, sans-serif`;
    g.textBaseline = "middle";
    const every = Math.ceil(12 / h);
    this.map.rows.forEach((row, i) => {
      g.fillStyle = row.down ? c.bad : c.soft;
      if (i % every === 0) g.fillText(`${row.down ? "✕ " : ""}${row.label}`, 0, top + i * h + h / 2, label - 6);
    });
  }

  /** The cells that are not as `drawn` has them. Thousands look alike in a few ways: each look is drawn once. */
  paintCells(g, { label, w, h }, c, top, scale, { rows, looks }) {
    const look = (letter, digit) => {
      const key = letter + digit;
      if (!looks.has(key)) {
        const canvas = el("canvas", { width: Math.ceil(w * scale), height: Math.ceil(h * scale) });
        const one = canvas.getContext("2d");
        one.scale(scale, scale);
        drawCell(one, letter, Number(digit), 0, 0, w, h, c);
        looks.set(key, canvas);
      }
      return looks.get(key);
    };
    this.map.rows.forEach(({ cells }, i) => {
      const before = rows[i] || "";
      for (let k = 0; k < cells.length; k += 2) {
        if (cells[k] === before[k] && cells[k + 1] === before[k + 1]) continue;
        const cell = look(cells[k], cells[k + 1]);
        g.drawImage(cell, label + (k / 2) * w, top + i * h, cell.width / scale, cell.height / scale);
      }
      rows[i] = cells;
    });
  }

  words([row, column]) {
    const r = this.map.rows[row];
    const letter = r.cells[column * 2];
    const digit = Number(r.cells[column * 2 + 1]);
    const first = this.map.columns[column];
    const last = this.map.shards_per_column > 1 ? ` and ${this.map.shards_per_column - 1} after it` : "";
    const share = letter === "o" ? "all ready" : `${NAMES[letter]}${digit ? `, about ${digit} tenths ready` : ""}`;
    return `${r.label} · ${first}${last}: ${share}${r.down ? ` (${r.down === r.nodes ? "" : `${r.down} `}not connected)` : ""}`;
  }

  tell(cell) {
    this.told.textContent = cell ? this.words(cell) : " ";
  }

  at(event) {
    const column = Math.floor((event.offsetX - this.size.label) / this.size.w);
    const row = Math.floor(event.offsetY / this.size.h);
    return row >= 0 && row < this.map.rows.length && column >= 0 && column < this.map.columns.length ? [row, column] : null;
  }

  point(event) {
    this.tell(this.at(event));
  }

  click(event) {
    const cell = this.at(event);
    if (cell) this.enter(cell);
  }

  /** Into the nodes and shards of a cell, as far as there is more to see. */
  enter([row, column]) {
    const m = this.map;
    if (m.nodes_per_row === 1 && m.shards_per_column === 1) return this.zoom({ shard: m.columns[column] });
    this.zoom({
      first_node: m.first_node + row * m.nodes_per_row, nodes: m.nodes_per_row === 1 ? 1 : m.nodes_per_row,
      first_shard: m.first_shard + column * m.shards_per_column, shards: m.shards_per_column,
    });
  }

  key(event) {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e9], End: [0, 1e9] }[event.key];
    if (move) {
      const clamp = (v, n) => Math.max(0, Math.min(n - 1, v));
      this.cursor = [clamp(this.cursor[0] + move[0], this.map.rows.length), clamp(this.cursor[1] + move[1], this.map.columns.length)];
      this.draw();
      this.tell(this.cursor);
      say(this.words(this.cursor));
    } else if (event.key === "Enter") this.enter(this.cursor);
    else return;
    event.preventDefault();
  }

  /** The picture with its title and legend as a PNG. */
  save() {
    const shape = this.shape(Math.max(1200, this.size.width));
    const canvas = el("canvas", {});
    const [top, bottom] = [54, 34];
    canvas.width = shape.width * 2;
    canvas.height = (shape.height + top + bottom) * 2;
    const g = canvas.getContext("2d");
    const c = colors();
    g.scale(2, 2);
    g.fillStyle = c.bg;
    g.fillRect(0, 0, shape.width, shape.height + top + bottom);
    g.fillStyle = c.ink;
    g.font = "bold 16px system-ui, sans-serif";
    g.fillText(`${this.map.dataset} · ${new Date().toISOString()}`, 8, 20);
    g.font = "12px system-ui, sans-serif";
    g.fillText(this.summary(), 8, 40);
    this.paintLabels(g, shape, c, top);
    this.paintCells(g, shape, c, top, 2, { rows: [], looks: new Map() });
    let x = 8;
    for (const [letter, name] of STATES) {
      drawCell(g, letter, 0, x, shape.height + top + 12, 14, 14, c);
      g.fillStyle = c.ink;
      g.font = "12px system-ui, sans-serif";
      g.fillText(name, x + 20, shape.height + top + 19);
      x += 110;
    }
    canvas.toBlob((blob) => {
      const a = el("a", { href: URL.createObjectURL(blob), download: `${this.map.dataset.replace(/[^\w.@-]/g, "_")}-map.png` });
      a.click();
      setTimeout(() => URL.revokeObjectURL(a.href), 10_000);
    });
  }
}

/** What the shapes mean, drawn as they are in the map. */
export function legend(totals) {
  const c = colors();
  const look = Object.values(c).join(" ");
  const sample = (letter) => {
    const canvas = el("canvas", { width: 28, height: 28, class: "key", "aria-hidden": "true", "data-look": look });
    const g = canvas.getContext("2d");
    g.scale(2, 2);
    drawCell(g, letter, 0, 0, 0, 14, 14, c);
    return canvas;
  };
  return el("ul", { class: "legend" }, ...STATES.map(([letter, name, meaning]) => el("li", { title: meaning }, sample(letter), ` ${name} ${thousands(totals[name])}`)));
}
