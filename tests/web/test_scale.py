"""The page over a thousand nodes by ten thousand shards: the simulator's, with a stage under way."""

import json
import os
import subprocess

import pytest
from cluster import BINARY, until
from playwright.sync_api import expect

NODES, SHARDS = 1_000, 10_000
BYTES_MAX = 2_000_000


class Simulated:
    def __init__(self, url):
        self.url = url


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    ready = tmp_path_factory.mktemp("simulate") / "ready"
    command = [
        BINARY, "simulate", "--nodes", NODES, "--shards", SHARDS, "--shard-size", "1MiB", "--speed", "0.05",
        "--ready-file", ready, "--parent", os.getpid(),
    ]  # fmt: skip
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    until("the simulation answers", ready.exists)
    yield Simulated(f"http://{json.loads(ready.read_text())['http']}/")
    process.kill()
    process.wait()


def test_the_largest_view_stays_small_and_says_what_it_leaves_out(simulated, open_page, shots):
    page = open_page(simulated, "#/")
    expect(page.locator("#stages tbody tr")).to_contain_text("running")
    # A fresh page, so that all that it needs is counted.
    page = page.context.new_page()
    client = page.context.new_cdp_session(page)
    received = []
    client.on("Network.dataReceived", lambda e: received.append(max(e["dataLength"], e["encodedDataLength"])))
    client.send("Network.enable")
    page.goto(simulated.url + "#/datasets/simulated@v1")
    expect(page.locator("canvas.map")).to_be_visible()
    expect(page.locator("#shards .count")).to_have_text(f"showing 1–50 of {SHARDS:,}")
    expect(page.locator("#nodes .count")).to_have_text(f"showing 1–20 of {NODES:,}")
    expect(page.locator("#map")).to_contain_text("1,000 of 1,000 nodes, 10,000 of 10,000 shards")
    expect(page.locator("main")).not_to_contain_text("Loading")
    assert sum(received) <= BYTES_MAX, f"{sum(received)} bytes until the data is shown"
    shots(page, "dataset-1000-nodes-by-10000-shards")


def updates(page, n):
    """So many updates from now on are drawn."""
    page.evaluate("window.millstreamDraws = []")
    until(f"{n} updates are drawn", lambda: page.evaluate("window.millstreamDraws.length") >= n)


def test_an_update_keeps_what_did_not_change(simulated, open_page):
    page = open_page(simulated, "#/datasets/simulated@v1?order=key")
    expect(page.locator("#shards tbody tr")).to_have_count(50)
    expect(page.locator("canvas.map")).to_be_visible()
    page.evaluate("for (const e of document.querySelectorAll('#shards tr, #shards input, #map h2, canvas.map')) e.kept = true")
    ready = page.locator("#map .legend").inner_text()
    updates(page, 3)
    expect(page.locator("#map .legend")).not_to_have_text(ready)
    fresh = "[...document.querySelectorAll('#shards tr, #shards input, #map h2, canvas.map')].filter((e) => !e.kept).length"
    assert page.evaluate(fresh) == 0, "made anew, although it is the same"
    # Buttons that were kept do what the newest drawing says.
    page.locator("#shards").get_by_role("button", name="next shards").click()
    expect(page.locator("#shards .count")).to_have_text(f"showing 51–100 of {SHARDS:,}")


def test_the_map_after_updates_is_the_map_painted_anew(simulated, open_page):
    page = open_page(simulated, "#/datasets/simulated@v1")
    expect(page.locator("canvas.map")).to_be_visible()
    first = page.evaluate("document.querySelector('canvas.map').toDataURL()")
    updates(page, 4)
    pictures = """() => {
      const canvas = document.querySelector("canvas.map");
      const seen = [canvas.toDataURL()];
      canvas.focus();
      seen.push(canvas.toDataURL());
      canvas.blur();
      return [...seen, canvas.toDataURL()];
    }"""
    updated, with_cursor, anew = page.evaluate(pictures)
    assert first != updated, "nothing moved in the meantime"
    assert with_cursor != anew, "the cursor was painted"
    assert updated == anew
