#!/usr/bin/env python3
"""What the status page costs over a large cluster: the simulator's, with a stage under way.

Starts `millstream simulate` (the real coordinator shell and HTTP port, told what the simulator's core is told), opens
each view in Chromium, and measures first paint, the time until the view shows data, bytes transferred, and the main
thread's work per update. One JSON document; exit 1 when a target is missed.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from playwright.sync_api import sync_playwright

TARGETS = {"first_paint_s": 1.0, "bytes_to_data": 2_000_000, "main_thread_ms_per_update": 100.0}
VIEWS = {
    "overview": ("#/", "#datasets tbody tr"),
    "dataset": ("#/datasets/simulated@v1", "canvas.map"),
    "nodes": ("#/nodes", "#list tbody tr"),
    "node": ("#/nodes/n1", "#facts dd"),
}
UPDATES = 15


def start(options, directory):
    ready = directory / "ready"
    command = [
        options.binary, "simulate", "--nodes", options.nodes, "--shards", options.shards, "--shard-size", options.shard_size,
        "--speed", options.speed, "--ready-file", ready, "--parent", os.getpid(),
    ]  # fmt: skip
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    while not ready.exists():
        if process.poll() is not None:
            sys.exit(f"simulate ended with {process.returncode}")
        time.sleep(0.05)
    return process, json.loads(ready.read_text())["http"]


def until_halfway(page, url):
    """A stage in the middle has the most to show."""
    page.goto(f"{url}healthz")
    share = "fetch('api/v1/stages').then(r => r.json()).then(s => s.items.length && s.items[0].bytes_ready / s.items[0].bytes_total)"
    while (page.evaluate(share) or 0) < 0.25:
        page.wait_for_timeout(200)


def measure(browser, url, path, there):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    client = context.new_cdp_session(page)
    received = [0]
    client.on("Network.dataReceived", lambda e: received.__setitem__(0, received[0] + max(e["dataLength"], e["encodedDataLength"])))
    client.send("Network.enable")
    client.send("Performance.enable")
    began = time.monotonic()
    page.goto(url + path)
    page.wait_for_selector(there, timeout=60_000)
    data_s = time.monotonic() - began
    to_data = received[0]
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")

    def task_s():
        return {m["name"]: m["value"] for m in client.send("Performance.getMetrics")["metrics"]}["TaskDuration"]

    page.wait_for_timeout(2_000)
    page.evaluate("window.millstreamDraws = []")
    before, bytes_before, clock = task_s(), received[0], time.monotonic()
    page.wait_for_timeout(UPDATES * 1_000)
    seconds = time.monotonic() - clock
    result = {
        "first_paint_s": round(paint / 1000, 3),
        "data_shown_s": round(data_s, 3),
        "bytes_to_data": to_data,
        "main_thread_ms_per_update": round(1000 * (task_s() - before) / seconds, 1),
        "longest_draw_ms": round(page.evaluate("Math.max(0, ...window.millstreamDraws)"), 1),
        "bytes_per_s": round((received[0] - bytes_before) / seconds),
    }
    context.close()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--shard-size", default="1MiB")
    parser.add_argument("--speed", type=float, default=0.05)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        process, address = start(options, pathlib.Path(directory))
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
            url = f"http://{address}/"
            until_halfway(browser.new_page(), url)
            views = {name: measure(browser, url, *view) for name, view in VIEWS.items()}
            browser.close()
        finally:
            process.terminate()
            process.wait()
    missed = [f"{view}: {name} is {found[name]}, and should be at most {most}" for view, found in views.items() for name, most in TARGETS.items() if found[name] > most]
    result = {"nodes": options.nodes, "shards": options.shards, "targets": TARGETS, "views": views, "missed": missed}
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
