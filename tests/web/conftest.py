"""A real Chromium against real daemons. Screenshots for people go to $WEB_SHOTS (default: target/web-shots)."""

import os
import pathlib
import re
import shutil

import pytest
from cluster import BINARY, ROOT, Cluster
from playwright.sync_api import expect, sync_playwright

SHOTS = pathlib.Path(os.environ.get("WEB_SHOTS") or pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "web-shots")
DEADLINE_MS = 60_000

expect.set_options(timeout=DEADLINE_MS)


@pytest.fixture(scope="session")
def chromium():
    path = shutil.which("chromium")
    assert path, "chromium is not installed; next: scripts/apt-install chromium"
    assert BINARY.exists(), f"{BINARY} is not built; next: cargo build -p millstream"
    with sync_playwright() as playwright:
        # Root's Chromium has no sandbox of its own; what it shows is ours.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens views; whatever the browser complains about (errors, the content policy) fails the test."""
    contexts, complaints = [], []

    def open_one(cluster, path="#/", width=1280, height=900, dark=False, quiet=True):
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(DEADLINE_MS)
        contexts.append(context)
        page = context.new_page()
        if quiet:
            page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.goto(cluster.url + path)
        expect(page.locator("#live")).to_have_attribute("data-state", "live")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not complaints, complaints


@pytest.fixture(scope="session")
def shots():
    shutil.rmtree(SHOTS, ignore_errors=True)
    SHOTS.mkdir(parents=True)

    def shoot(page, name):
        safe = re.sub(r"[^\w.-]+", "-", name)
        page.screenshot(path=SHOTS / f"{safe}.png", full_page=True, animations="disabled")

    return shoot


@pytest.fixture(scope="module")
def make_cluster(tmp_path_factory):
    clusters = []

    def make(agents, **options):
        cluster = Cluster(tmp_path_factory.mktemp("cluster"), agents, **options)
        clusters.append(cluster)
        return cluster

    yield make
    for cluster in clusters:
        cluster.stop()
