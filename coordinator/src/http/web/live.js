// Documents live: one event stream for what the view shows; JSON Patch (RFC 6902) on top of whole documents.

/** Applies a patch in place; only what the coordinator sends: add, remove, replace. Returns the document. */
export function apply(document, patch) {
  for (const { op, path, value } of patch) {
    if (path === "") {
      document = value;
      continue;
    }
    const parts = path.slice(1).split("/").map((p) => p.replaceAll("~1", "/").replaceAll("~0", "~"));
    const last = parts.pop();
    let at = document;
    for (const part of parts) at = at[part];
    if (Array.isArray(at)) {
      if (op === "remove") at.splice(Number(last), 1);
      else if (op === "add") at.splice(last === "-" ? at.length : Number(last), 0, value);
      else at[Number(last)] = value;
    } else if (op === "remove") delete at[last];
    else at[last] = value;
  }
  return document;
}

/** After this silence of a stream that ticks every second something is wrong. */
const SILENT_MS = 5_000;
/** A page that was not seen for so long stops listening. */
const HIDDEN_MS = 10_000;
const RETRY_MS = [500, 1_000, 2_000, 3_000];

/**
 * Follows documents. `changed(watch, document, status)` after each change; `tell(state, dataAtMs)` with "live",
 * "connecting" or "gone".
 */
export class Live {
  constructor(changed, tell) {
    Object.assign(this, { changed, tell, watches: [], documents: new Map(), source: null, heard: 0, dataAt: 0, failures: 0, retry: 0 });
    setInterval(() => this.check(), 500);
    addEventListener("online", () => this.open());
    document.addEventListener("visibilitychange", () => {
      clearTimeout(this.resting);
      // A page that nobody sees gives its connection back (browsers have six per host), and is up to date again at once.
      if (document.visibilityState === "hidden") this.resting = setTimeout(() => this.rest(), HIDDEN_MS);
      else if (!this.source) this.open();
    });
  }

  /** From now on these documents. */
  watch(watches) {
    if (watches.join("\n") === this.watches.join("\n") && this.source) return;
    this.watches = watches;
    for (const known of this.documents.keys()) if (!watches.includes(known)) this.documents.delete(known);
    this.open();
  }

  rest() {
    clearTimeout(this.retry);
    this.source?.close();
    this.source = null;
    this.asleep = true;
  }

  open() {
    clearTimeout(this.retry);
    this.asleep = false;
    this.source?.close();
    const query = this.watches.map((w) => `watch=${encodeURIComponent(w)}`).join("&");
    const source = new EventSource(`api/v1/stream?${query}`);
    this.source = source;
    this.heard = Date.now();
    const take = (handler) => (event) => {
      if (this.source !== source) return;
      this.heard = Date.now();
      this.failures = 0;
      handler(JSON.parse(event.data));
    };
    source.addEventListener("document", take(({ watch, status, document }) => {
      this.documents.set(watch, { status, document });
      this.changed(watch, document, status);
    }));
    source.addEventListener("patch", take(({ watch, patch }) => {
      const known = this.documents.get(watch);
      if (!known) return this.open();
      known.document = apply(known.document, patch);
      this.changed(watch, known.document, known.status);
    }));
    source.addEventListener("tick", take(({ at_unix_ms }) => {
      this.dataAt = Date.now();
      // What is told as "ago" is told by the coordinator's clock.
      this.skew = at_unix_ms - Date.now();
      this.tell("live", this.dataAt);
    }));
    source.onerror = () => {
      if (this.source === source) this.lost();
    };
  }

  lost() {
    this.source?.close();
    this.source = null;
    this.failures++;
    this.tell(this.failures > 1 ? "gone" : "connecting", this.dataAt);
    clearTimeout(this.retry);
    this.retry = setTimeout(() => this.open(), RETRY_MS[Math.min(this.failures - 1, RETRY_MS.length - 1)]);
  }

  check() {
    if (this.asleep) return;
    if (this.source && Date.now() - this.heard > SILENT_MS) this.lost();
    else if (!this.source) this.tell(this.failures > 1 ? "gone" : "connecting", this.dataAt);
  }

  /** Milliseconds since 1970 by the coordinator's clock. */
  now() {
    return Date.now() + (this.skew || 0);
  }
}
