// Numbers for people.

export function bytes(n) {
  if (n === null || n === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) {
    n /= 1024;
    i++;
  }
  return `${i === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
}

export const rate = (n) => (n ? `${bytes(n)}/s` : "–");

export function span(s) {
  if (s === null || s === undefined) return "–";
  if (s < 90 && Number.isInteger(s)) return `${s} s`;
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 90) return `${s.toFixed(1)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${(s / 3600).toFixed(1)} h`;
  return `${Math.round(s / 86400)} d`;
}

export const thousands = (n) => n.toLocaleString("en");

export const count = (n, one, many) => `${thousands(n)} ${n === 1 ? one : many || `${one}s`}`;

/** Never 100 % before it is all. */
export function percent(part, whole) {
  if (!whole) return "–";
  return part >= whole ? "100 %" : `${Math.min(99, Math.floor((100 * part) / whole))} %`;
}

export const ratio = (r) => (r === null || r === undefined ? "–" : r.toFixed(2));

const pad = (n) => String(n).padStart(2, "0");

/** Local time of day, with the date when it is not today. */
export function clock(unixMs) {
  const d = new Date(unixMs);
  const time = `${pad(d.getHours())}:${pad(d.getMinutes())}:${pad(d.getSeconds())}`;
  return d.toDateString() === new Date().toDateString() ? time : `${d.getFullYear()}-${pad(d.getMonth() + 1)}-${pad(d.getDate())} ${time}`;
}

export const since = (unixS, nowMs) => span(Math.max(0, Math.round(nowMs / 1000 - unixS)));
