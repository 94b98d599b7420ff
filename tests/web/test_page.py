"""The page during a real stage: it says what `status --json` says, filters, links, survives a restart."""

import json
import os
import platform
import re
import shlex
import urllib.request

import pytest
from axe_playwright_python.sync_playwright import Axe
from cluster import ask, until
from playwright.sync_api import expect

DATASET = "tiles@v1"
SHARDS, SHARD_BYTES = 120, 200_000
EVIL = "<img src=x onerror=alert(1)>&amp;.tar"


@pytest.fixture(scope="module")
def cluster(make_cluster):
    cluster = make_cluster({name: {} for name in ["node1", "node2", "node3"]})
    cluster.put("tiles", SHARDS - 1, SHARD_BYTES)
    cluster.put("tiles", 1, SHARD_BYTES, first_seed=900, name=EVIL)
    cluster.add(DATASET, "tiles")
    return cluster


@pytest.fixture(scope="module")
def halfway(cluster):
    """A stage that stands still in the middle: the origin sends next to nothing any more."""
    cluster.rate(4 << 20)
    cluster.cli("stage", DATASET)
    wanted = 3 * SHARDS * SHARD_BYTES

    def ready():
        return sum(n["bytes_ready"] for n in cluster.status()["datasets"][0]["nodes"])

    until("a quarter of all bytes has arrived", lambda: ready() > wanted / 4)
    cluster.rate(1)
    until("nothing moves any more", lambda: settled(cluster))
    assert ready() < wanted, "it was over before it could be looked at"
    hook = cluster.job(7, "node[1-2]", DATASET)
    until("the job is known", lambda: cluster.get("jobs")["total"])
    yield cluster
    hook.kill()
    hook.wait()
    cluster.rate(None)


def settled(cluster):
    """The same twice, a second apart by the coordinator's own clock."""
    first = cluster.status()
    later = first
    while later["coordinator"]["uptime_s"] < first["coordinator"]["uptime_s"] + 1.5:
        later = cluster.status()
    return figures(first) == figures(later)


def figures(status):
    nodes = [(n["node"], n["state"], n["disk"]["used_bytes"], n["received_bytes"]) for n in status["nodes"]]
    replicas = [(d["name"], n["node"], n["state"], n["bytes_ready"], n["shards_ready"]) for d in status["datasets"] for n in d["nodes"]]
    stages = [(s["id"], s["state"], s["bytes_ready"], s["origin_bytes"]) for s in status["stages"]]
    return nodes, replicas, stages


def size(n):
    for unit in ["B", "KiB", "MiB", "GiB"]:
        if n < 1024 or unit == "GiB":
            return f"{round(n)} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1024


def cells(page, panel):
    """The rows of a panel's table as {head: text}."""
    rows = page.locator(f"#{panel} tbody tr")
    heads = page.locator(f"#{panel} thead th").all_inner_texts()
    return [dict(zip(heads, row.locator("th, td").all_inner_texts())) for row in rows.all()]


def compare(page, cluster):
    """What the page says equals what `status --json` says. Only meaningful while nothing moves."""
    status = cluster.status()
    dataset = status["datasets"][0]
    ready = [n for n in dataset["nodes"] if n["state"] == "ready"]
    page.goto(cluster.url + "#/")
    expect(page.locator("#datasets tbody tr")).to_have_count(1)
    verdict = f"ready on {len(ready)} of {len(dataset['nodes'])} nodes"
    expect(page.locator("#datasets")).to_contain_text(verdict)
    expect(page.locator("#headline")).to_contain_text(verdict if len(ready) < 3 else "is ready")
    row = cells(page, "datasets")[0]
    assert row["Shards"] == str(dataset["shards"]) and row["Size"] == size(dataset["bytes"])
    stage = status["stages"][-1]
    expect(page.locator("#stages tbody tr")).to_have_count(len(status["stages"]))
    row = next(row for row in cells(page, "stages") if row["Stage"] == str(stage["id"]))
    assert row["Dataset"] == stage["dataset"]
    share = 100 * stage["bytes_ready"] // stage["bytes_total"]
    assert f"{stage['state']} · {share} % of {size(stage['bytes_total'])}" in row["Progress"]
    assert row["S3 ÷ dataset"] == f"{stage['origin_bytes'] / dataset['bytes']:.2f}"
    if stage["state"] == "done":
        assert row["T/T*"].startswith(f"{stage['ratio_to_bound']:.2f}\n{stage['bound_by']}"), row
    page.goto(cluster.url + f"#/datasets/{DATASET}")
    expect(page.locator("#nodes tbody tr")).to_have_count(3)
    shown = {row["Node"]: row for row in cells(page, "nodes")}
    for node in dataset["nodes"]:
        row = shown[node["node"]]
        assert node["state"] in row["State"]
        assert row["Shards"] == f"{node['shards_ready']} of {node['shards_wanted']}"
        assert f"{100 * node['bytes_ready'] // node['bytes_wanted']} % of {size(node['bytes_wanted'])}" in row["Bytes"]
    legend = page.locator("#map .legend").inner_text()
    counted = sum(n["shards_ready"] for n in dataset["nodes"])
    assert f" ready {counted}" in legend, legend
    page.goto(cluster.url + "#/nodes")
    expect(page.locator("#list tbody tr")).to_have_count(3)
    for row in cells(page, "list"):
        node = next(n for n in status["nodes"] if n["node"] == row["Node"])
        assert node["state"] in row["State"] and size(node["disk"]["used_bytes"]) in row["Disk"]
        assert row["From S3"] == size(node["received_bytes"]["origin"])
        assert row["From peers"] == size(node["received_bytes"]["tcp"] + node["received_bytes"]["rdma"])
    compare_node(page, cluster, next(n for n in status["nodes"] if n["node"] == "node2"))
    page.goto(cluster.url + "#/jobs")
    job = status["jobs"][0]
    expect(page.locator("#list tbody tr")).to_have_count(1)
    row = cells(page, "list")[0]
    assert row["Job"].split("\n")[0] == job["job"] and job["user"] in row["Job"]
    where = {n["node"]: n["state"] for n in dataset["nodes"]}
    assert f"{DATASET} ready on {sum(where[n] == 'ready' for n in job['nodes'])} of {len(job['nodes'])}" in row["Datasets"]
    assert figures(cluster.status()) == figures(status), "it moved while it was compared"


def facts(page, panel):
    names = page.locator(f"#{panel} dt").all_inner_texts()
    return dict(zip(names, page.locator(f"#{panel} dd").all_inner_texts()))


def compare_node(page, cluster, node):
    page.goto(cluster.url + f"#/nodes/{node['node']}")
    expect(page.locator("#headline")).to_contain_text(node["state"])
    shown = facts(page, "facts")
    assert (shown["Address"], shown["Agent"]) == (node["address"], node["agent_version"])
    assert shown["I/O engine"].split(" ")[0] == node["io"] and shown["Labels"] == "rack=r1"
    link = node["link_bytes_per_s"]
    assert shown["Link, while peers send"] == (f"{size(link)}/s" if link else "not measured yet")
    assert shown["Local hits"].startswith(size(node["local_hit_bytes"]))
    disk = facts(page, "disk")
    assert disk["pinned or leased"] == size(node["disk"]["pinned_bytes"]), disk
    assert disk["on its way (partial)"] == size(node["disk"]["partial_bytes"]), disk
    assert disk["while it is written to"] == f"{size(node['disk']['write_bytes_per_s'])}/s", disk
    received = node["received_bytes"]
    by_source = f"S3 {size(received['origin'])} · RDMA {size(received['rdma'])} · TCP {size(received['tcp'])}"
    expect(page.locator("#carriers")).to_contain_text(f"Received: {by_source}")


def test_in_the_middle_the_page_says_what_status_says(halfway, open_page):
    page = open_page(halfway)
    compare(page, halfway)
    page.goto(halfway.url + "#/")
    row = page.locator('#stages tr[data-row="1"]')
    # What came before is no measure of when it will be over.
    expect(row).to_contain_text("–\nnothing has arrived for", use_inner_text=True)
    # Links and disks could do more than the origin, which was held back.
    expect(row).to_contain_text("origin · T* ")


VIEWS = {
    "overview": "#/",
    "datasets": "#/datasets",
    "dataset": f"#/datasets/{DATASET}",
    "nodes": "#/nodes",
    "node": "#/nodes/node1",
    "jobs": "#/jobs",
    "events": "#/events",
}


def shown(page):
    """Everything that the view asked for is there."""
    expect(page.locator("main section.panel")).not_to_have_count(0)
    expect(page.locator("main")).not_to_contain_text("Loading")
    expect(page.locator("main .wrong")).to_have_count(0)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_view_is_accessible_and_fits(halfway, open_page, shots, width, dark):
    page = open_page(halfway, width=width, dark=dark)
    for name, path in VIEWS.items():
        page.goto(halfway.url + path)
        shown(page)
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{name} is {overflow} pixels wider than {width}"
        shots(page, f"{name}-{width}-{'dark' if dark else 'light'}")
        # However many rows there are: nobody scrolls through thousands of pixels to see where things stand.
        height = page.evaluate("document.documentElement.scrollHeight")
        assert height < 5_000, f"{name} is {height} pixels tall at a width of {width}"
        found = Axe().run(page)
        serious = [v for v in found.response["violations"] if v["impact"] in ("serious", "critical")]
        assert not serious, json.dumps([(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in serious], indent=1)


def test_filters_pages_and_deep_links(halfway, open_page):
    page = open_page(halfway, f"#/datasets/{DATASET}?order=key&q=shard-00")
    shards = page.locator("#shards")
    expect(shards.locator(".count")).to_have_text(f"showing 1–50 of 100 that match ({SHARDS} in all)")
    expect(shards.locator("tbody tr").first).to_contain_text("shard-0000.tar")
    shards.get_by_role("button", name="next shards").click()
    expect(shards.locator(".count")).to_have_text(f"showing 51–100 of 100 that match ({SHARDS} in all)")
    expect(shards.locator("tbody tr").first).to_contain_text("shard-0050.tar")
    assert "offset=50" in page.url
    # The link shows the same to somebody else.
    other = open_page(halfway, page.url.split("/", 3)[3])
    expect(other.locator("#shards tbody tr").first).to_contain_text("shard-0050.tar")
    # Typing filters, keeps the focus and the text, and ends up in the link.
    box = page.get_by_label("Filter shards by name")
    box.fill("")
    box.press_sequentially("shard-0007", delay=20)
    expect(shards.locator("tbody tr")).to_have_count(1)
    expect(box).to_be_focused()
    expect(box).to_have_value("shard-0007")
    page.wait_for_url(re.compile("q=shard-0007"))
    page.get_by_label("Show shards in state").select_option("bad")
    expect(shards.locator(".count")).to_contain_text("showing 0 of 0")
    # Back goes back.
    page.go_back()
    expect(shards.locator("tbody tr")).to_have_count(1)


def test_the_map_by_keyboard_as_a_table_and_as_a_picture(halfway, open_page):
    page = open_page(halfway, f"#/datasets/{DATASET}")
    canvas = page.locator("canvas.map")
    expect(canvas).to_have_attribute("aria-label", re.compile(f"3 nodes by {SHARDS} shards: ready [0-9]+"))
    canvas.focus()
    canvas.press("ArrowDown")
    canvas.press("ArrowRight")
    expect(page.locator("#said")).to_contain_text("node2 · ")
    page.get_by_text("The map as a table").click()
    rows = page.locator("#map tbody tr")
    expect(rows).to_have_count(3)
    for row in rows.all():
        counts = [int(text) for text in row.locator("td").all_inner_texts()]
        assert sum(counts) == SHARDS, counts
    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture").click()
    assert download.value.suggested_filename == "tiles@v1-map.png"
    with open(download.value.path(), "rb") as picture:
        assert picture.read(8) == b"\x89PNG\r\n\x1a\n"
    # Enter goes to the shard under the cursor.
    canvas.focus()
    canvas.press("Home")
    canvas.press("Enter")
    expect(page.locator("#shards tbody tr")).to_have_count(1)


def test_text_from_outside_stays_text(halfway, open_page):
    page = open_page(halfway, f"#/datasets/{DATASET}?q=img&order=key")
    expect(page.locator("#shards tbody tr").first).to_contain_text(EVIL)
    assert page.locator("main img").count() == 0
    page.goto(halfway.url + "#/nodes/%3Cimg%20src=x%3E")
    expect(page.locator("main .wrong").first).to_contain_text("no node")
    assert page.locator("main img").count() == 0


@pytest.mark.parametrize("path", [*VIEWS.values(), "#/events?state=staged&severity=info", "#/nodes?q=node2", "#/datasets?state=staging"])
def test_the_command_line_and_the_json_behind_are_one_click_away(halfway, open_page, path):
    page = open_page(halfway, path)
    shown(page)
    command = page.locator("#cli").inner_text()
    page.locator("#cli").click()
    assert page.evaluate("navigator.clipboard.readText()") == command
    # Off a terminal --watch has no end.
    program, *arguments = [part for part in shlex.split(command) if part != "--watch"]
    assert program == "millstream"
    answer = halfway.cli(*arguments).stdout
    if "--view" in arguments:
        assert json.loads(answer)["items"], answer
    panels = page.locator("main section.panel")
    for panel in panels.all():
        link = panel.locator("a.json")
        with urllib.request.urlopen(link.evaluate("a => a.href"), timeout=10) as found:
            assert found.status == 200 and json.load(found) is not None
    assert panels.count()


def test_on_a_small_screen_the_rest_of_each_row_is_one_touch_away(halfway, open_page):
    page = open_page(halfway, f"#/datasets/{DATASET}", width=390)
    shards = page.locator("#shards")
    expect(shards.locator("tbody tr")).to_have_count(8)
    checksum = shards.locator('[data-head="Origin checksum"]').first
    expect(checksum).to_be_hidden()
    shards.get_by_role("button", name="More of each").click()
    expect(checksum).to_be_visible()
    expect(shards.get_by_role("button", name="Less of each")).to_have_attribute("aria-expanded", "true")


def test_a_job_waits_for_named_nodes_with_reasons(halfway, open_page, shots):
    page = open_page(halfway, "#/jobs")
    row = page.locator("#list tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("rig/7")
    expect(row).to_contain_text("waiting")
    blocking = halfway.get("jobs")["items"][0]["datasets"][0]["blocking"]
    assert {b["node"] for b in blocking} <= {"node1", "node2"} and blocking
    for b in blocking:
        expect(row).to_contain_text(f"{b['node']} {b['state']}: ")
        assert b["reason"]
    page.get_by_label("Show jobs in state").select_option("ended")
    expect(page.locator("#list .count")).to_contain_text("showing 0 of 0")
    page.goto(halfway.url + "#/jobs?q=rig/7")
    expect(row).to_have_count(1)
    row.get_by_role("link", name=DATASET).click()
    expect(page.locator("#headline")).to_contain_text("ready on")
    # The job keeps its data where it runs.
    page.goto(halfway.url + "#/nodes/node1")
    expect(page.locator("#keepers")).to_contain_text("job rig/7 of ann")


def test_a_node_says_who_keeps_what_and_what_was_found_in_place(halfway, open_page):
    page = open_page(halfway, "#/nodes/node1")
    keepers = page.locator("#keepers")
    halfway.cli("pin", DATASET, "--nodes", "node1")
    expect(keepers).to_contain_text("pin, until it is unpinned")
    expect(keepers).to_contain_text(f"@{platform.node()}")
    with halfway.socket("node1") as connection:
        assert ask(connection, op="lease", dataset=DATASET)["ok"]
        expect(keepers).to_contain_text(f"(pid {os.getpid()}, ")
        expect(keepers).to_contain_text("lease, as long as the process lives")
        # A shard that is there already: a local hit; one that has to come is none.
        key = next(s["key"] for s in halfway.get(f"datasets/{DATASET}/shards?order=key&limit=1000&state=ready")["items"])
        there = ask(connection, op="path", dataset=DATASET, key=key)
        assert there["ok"], there
        absent = ask(connection, op="fetch", dataset=DATASET, key=sorted(keys_missing(halfway))[-1], timeout_ms=1)
        assert absent["code"] == 4, absent
    expect(page.locator("#facts")).to_contain_text(f"{size(SHARD_BYTES)} of shards that readers wanted")
    expect(keepers).not_to_contain_text("lease, as long")
    halfway.cli("unpin", DATASET, "--nodes", "node1")
    expect(keepers).not_to_contain_text("pin, until")
    page.goto(halfway.url + "#/")
    expect(page.locator("#glance")).to_contain_text(f"{size(SHARD_BYTES)} in all")


def keys_missing(cluster):
    found = cluster.get(f"datasets/{DATASET}/shards?order=key&limit=1000")["items"]
    return [s["key"] for s in found if s["copies"] == 0]


def test_a_node_says_who_feeds_it_by_which_carrier(halfway, open_page):
    halfway_node = next(n["node"] for n in halfway.status()["nodes"] if n["received_bytes"]["tcp"])
    page = open_page(halfway, f"#/nodes/{halfway_node}")
    expect(page.locator("#carriers")).to_contain_text("tcp")
    expect(page.locator("#carriers")).to_contain_text("No rails")

    def counted():
        links = halfway.get(f"nodes/{halfway_node}")["links_in"]
        received = next(n for n in halfway.status()["nodes"] if n["node"] == halfway_node)["received_bytes"]["tcp"]
        return links if sum(link["tcp_bytes"] for link in links) == received else None

    for link in until("all bytes are counted at their peers", counted):
        if link["peer"] == "origin":
            continue
        row = page.locator("#links-in tbody tr", has_text=link["peer"])
        expect(row.locator('[data-head="By TCP"]')).to_have_text(size(link["tcp_bytes"]))
        # The other end says the same.
        out = halfway.get(f"nodes/{link['peer']}")["links_out"]
        assert next(o for o in out if o["peer"] == halfway_node)["tcp_bytes"] == link["tcp_bytes"]


def test_rails_and_their_counters(halfway, open_page):
    """No machine of the tests has the devices: the page is given a node with two rails."""
    rail = {
        "device": "mlx5_0", "port": 1, "gid": "fe80::1", "kind": "RoCE v2", "mtu_bytes": 4096, "queue_pairs": 3,
        "received_bytes": 3 << 20, "wire_received_bytes": 4 << 20, "state": "up", "counters": {"out_of_sequence": 7, "rnr_nak": 0},
    }  # fmt: skip
    node = halfway.get("nodes/node1") | {"rails": [rail, rail | {"port": 2, "received_bytes": 0}]}
    page = open_page(halfway, "#/", quiet=False)
    told = json.dumps({"watch": "nodes/node1", "status": 200, "document": node})
    stream = f"event: document\ndata: {told}\n\n"
    page.route("**/api/v1/stream?*", lambda route: route.fulfill(content_type="text/event-stream", body=stream))
    page.goto(halfway.url + "#/nodes/node1")
    expect(page.locator("#carriers tbody tr")).to_have_count(2)
    first = cells(page, "carriers")[0]
    assert (first["Device"], first["Kind"]) == ("mlx5_0, port 1", "RoCE v2")
    assert (first["Received"], first["Received by the device"], first["MTU"]) == ("3.0 MiB", "4.0 MiB", "4.0 KiB")
    counters = page.locator("#carriers details").first
    counters.locator("summary").click()
    expect(counters).to_contain_text("out_of_sequence 7")
    expect(counters).not_to_contain_text("rnr_nak")


def test_by_keyboard_alone(halfway, open_page):
    page = open_page(halfway, "#/")
    shown(page)
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == DATASET:
            break
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(DATASET)


def test_the_description_names_every_path_that_the_page_uses(halfway, open_page):
    page = open_page(halfway, "#/")
    asked = set()
    page.on("request", lambda r: asked.add(r.url))
    for path in VIEWS.values():
        page.goto(halfway.url + path)
        shown(page)
    with urllib.request.urlopen(halfway.url + "api/v1/openapi.json", timeout=10) as answer:
        described = json.load(answer)["paths"]
    patterns = [re.compile("^" + re.sub(r"\{\w+\}", "[^/]+", p) + "$") for p in described]
    for url in asked:
        assert url.startswith(halfway.url), f"{url} is elsewhere"
        path = "/" + url[len(halfway.url) :].split("?")[0]
        if path.startswith("/api/"):
            assert any(p.match(path) for p in patterns), f"{path} is not described"


def test_a_restart_of_the_coordinator_is_said_and_survived(halfway, open_page):
    page = open_page(halfway, "#/events", quiet=False)
    expect(page.locator("#list tbody")).to_contain_text(f"of {DATASET} on 3 nodes")
    before = page.locator("#list tbody").inner_text()
    halfway.coordinator.kill()
    expect(page.locator("#live")).to_have_attribute("data-state", "gone")
    expect(page.locator("#gone")).to_contain_text("does not answer")
    expect(page.locator("#live")).to_contain_text(re.compile("data [0-9]+ s old"))
    expect(page.locator("#age")).to_contain_text(re.compile("as of [0-9:]+"))
    # What was there stays, marked as old.
    expect(page.locator("#list tbody")).to_contain_text(f"of {DATASET} on 3 nodes")
    halfway.coordinator.start()
    expect(page.locator("#live")).to_have_attribute("data-state", "live")
    expect(page.locator("#gone")).to_be_hidden()
    began = page.locator("#list tbody tr", has_text="coordinator head")
    expect(began).to_have_count(2)
    assert "added tiles@v1" in before
    # The stage is the same; what is counted began anew, and that is said.
    stage = halfway.status()["stages"][0]
    assert stage["started_at"] < stage["counted_since"]
    until("what the nodes held by then is found", lambda: halfway.status()["stages"][0]["bytes_found"] > 0)
    page.goto(halfway.url + "#/")
    expect(page.locator("#stages tbody")).to_contain_text(re.compile("since [0-9:]{8}"))
    page.goto(halfway.url + "#/events")
    expect(page.locator("#list tbody")).to_contain_text("added tiles@v1")


def test_at_the_end_the_page_says_what_status_says(halfway, open_page, shots):
    halfway.rate(None)
    halfway.cli("wait", DATASET, "--nodes", "all", "--timeout", "60s")
    until("nothing moves any more", lambda: settled(halfway))
    page = open_page(halfway)
    compare(page, halfway)
    page.goto(halfway.url + "#/")
    expect(page.locator("#headline")).to_contain_text("everything that was staged is ready")
    shots(page, "overview-ready")
    page.goto(halfway.url + f"#/datasets/{DATASET}")
    expect(page.locator("#map .legend")).to_contain_text(f"ready {3 * SHARDS}")
    shots(page, "dataset-ready")


def test_what_was_done_stays_done_and_names_the_node_that_went(halfway, open_page, shots):
    page = open_page(halfway, "#/")
    row = page.locator('#stages tr[data-row="1"]')
    whole = f"done · 100 % of {size(3 * SHARDS * SHARD_BYTES)}"
    expect(row).to_contain_text(whole)
    expect(row).not_to_contain_text("missing")
    halfway.agents["node3"].kill()
    expect(row).to_contain_text("now missing on node3: its agent is not connected, for")
    expect(row).to_contain_text(whole)
    expect(page.locator("#headline")).to_contain_text("ready on 2 of 3 nodes; waiting for node3")
    shots(page, "overview-node-gone")
    stage = halfway.status()["stages"][0]
    assert (stage["state"], stage["bytes_ready"]) == ("done", stage["bytes_total"])
    assert [b["node"] for b in stage["lacking"]] == ["node3"] and stage["nodes_lacking"] == 1
    halfway.agents["node3"].start()
    expect(row).not_to_contain_text("missing")
    expect(page.locator("#headline")).to_contain_text("everything that was staged is ready")
