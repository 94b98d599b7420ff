"""Every alarm appears on the page when its cause is there, and goes when the cause goes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from axe_playwright_python.sync_playwright import Axe
from cluster import until, without_io_uring
from playwright.sync_api import expect

SHARD_BYTES = 2_000_000


@pytest.fixture(scope="module")
def cluster(make_cluster):
    agents = {
        "node1": {},
        "node2": {},
        "liar": {"environment": {"MILLSTREAM_FAULT_SERVE": "flip"}},
        "caged": {"before": without_io_uring},
        "small": {"arguments": {"--capacity": "20MiB"}},
    }
    cluster = make_cluster(agents)
    cluster.put("a", 6, SHARD_BYTES)
    cluster.put("full", 8, 2_400_000, first_seed=50)
    cluster.put("huge", 12, SHARD_BYTES, first_seed=100)
    cluster.put("rotten", 2, SHARD_BYTES, first_seed=200)
    cluster.put("slow", 4, SHARD_BYTES, first_seed=300)
    for name in ["a", "full", "huge", "rotten", "slow"]:
        cluster.add(f"{name}@v1", name)
    return cluster


@pytest.fixture
def page(cluster, open_page):
    return open_page(cluster, "#/")


def alarm(page, kind, about=""):
    return page.locator(f'[data-alarm^="{kind}:{about}"]')


def nothing_serious(page):
    found = Axe().run(page).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not serious, [(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in serious]


def test_a_fallback_shows_while_the_process_that_fell_back_runs(cluster, page):
    shown = alarm(page, "fallback", "caged:uring:blocking")
    expect(shown).to_contain_text("caged uses blocking instead of uring")
    expect(shown).to_contain_text("Next: millstream doctor on caged")
    cluster.agents["caged"].kill()
    expect(shown).to_have_count(0)
    cluster.agents["caged"].before = None
    cluster.agents["caged"].start()
    until("caged is back", lambda: next(n for n in cluster.status()["nodes"] if n["node"] == "caged")["state"] == "up")
    expect(alarm(page, "node-down", "caged")).to_have_count(0)
    expect(shown).to_have_count(0)


def test_a_silent_node_is_named_and_forgotten_when_it_is_back(cluster, page, shots):
    cluster.agents["node2"].freeze()
    expect(alarm(page, "node-silent", "node2")).to_contain_text("not heard of for")
    expect(alarm(page, "node-down", "node2")).to_contain_text("is the agent running")
    shots(page, "alarm-node-down")
    cluster.agents["node2"].thaw()
    expect(alarm(page, "node-down", "node2")).to_have_count(0)
    expect(alarm(page, "node-silent", "node2")).to_have_count(0)


def test_bad_bytes_raise_checksum_and_quarantine(cluster, page, open_page, shots):
    # The liar has it first, so that the others get it from there.
    cluster.cli("stage", "a@v1", "--nodes", "liar", "--wait", "--timeout", "60s")
    cluster.cli("stage", "a@v1", "--nodes", "node1,node2,caged", "--wait", "--timeout", "60s")
    expect(page.locator('[data-alarm^="checksum:"]').first).to_contain_text("did not match their checksum")
    expect(alarm(page, "quarantined", "liar")).to_contain_text("avoided as a source")
    shots(page, "alarm-checksum")
    nothing_serious(page)
    other = open_page(cluster, "#/datasets/a@v1", width=390, dark=True)
    row = other.locator("#mended tbody tr").first
    for text in ["shard-", "liar", "not taken"]:
        expect(row).to_contain_text(text)
    other.locator("#mended").get_by_role("button", name="More of each").click()
    expect(row.locator('[data-head="Expected"]')).to_contain_text("crc64nvme:")
    expect(row.locator('[data-head="Actual"]')).to_contain_text("crc64nvme:")
    nothing_serious(other)
    shots(other, "dataset-mended-390-dark")
    expect(page.locator('[data-alarm^="checksum:"]')).to_have_count(0)
    expect(alarm(page, "quarantined", "liar")).to_have_count(0)


def test_a_disk_near_its_quota(cluster, page):
    cluster.cli("stage", "full@v1", "--nodes", "small", "--wait", "--timeout", "60s")
    expect(alarm(page, "disk-near-quota", "small")).to_contain_text("of its quota")
    cluster.cli("evict", "full@v1", "--nodes", "small")
    expect(alarm(page, "disk-near-quota", "small")).to_have_count(0)


def test_a_version_that_does_not_fit(cluster, page):
    assert cluster.cli("stage", "huge@v1", "--nodes", "small,node1", "--wait", "--timeout", "60s", check=False).returncode == 7
    expect(alarm(page, "refused", "huge@v1:small")).to_contain_text("small cannot take huge@v1")
    expect(page.locator("#headline")).to_contain_text("huge@v1 is ready on 1 of 2 nodes, failed on 1")
    cluster.cli("dataset", "rm", "huge@v1")
    expect(alarm(page, "refused", "huge@v1:small")).to_have_count(0)


def test_a_shard_that_is_corrupt_at_the_origin(cluster, page, shots):
    fault = {"key": "data/rotten/shard-0001.tar", "request": "get", "kind": {"type": "corrupt", "at": 777}}
    number = cluster.s3_control("POST", "/faults", fault)["id"]
    assert cluster.cli("stage", "rotten@v1", "--nodes", "node1,node2", "--wait", "--timeout", "60s", check=False).returncode == 5
    expect(alarm(page, "shards-failed", "rotten@v1")).to_contain_text("shard-0001.tar")
    page.goto(cluster.url + "#/datasets/rotten@v1")
    failures = page.locator("#failures")
    for text in ["shard-0001.tar", "crc64nvme:", "origin", "read again by other nodes"]:
        expect(failures).to_contain_text(text)
    expect(page.locator("#map .legend")).to_contain_text("bad 2")
    shots(page, "dataset-failed")
    nothing_serious(page)
    page.goto(cluster.url + "#/")
    cluster.s3_control("DELETE", f"/faults/{number}")
    cluster.cli("dataset", "rm", "rotten@v1")
    expect(alarm(page, "shards-failed", "rotten@v1")).to_have_count(0)


def test_a_source_that_is_slow(make_cluster, open_page):
    # Of its own: which of two nodes is slow is found by what all of them get, and other faults here make some of them late.
    slow = {"environment": {"MILLSTREAM_FAULT_SERVE": "stall:1500"}}
    cluster = make_cluster({"node1": {}, "node2": {}, "node3": {}, "snail": slow})
    cluster.put("snail", 8, SHARD_BYTES, first_seed=400)
    cluster.add("snail@v1", "snail")
    # It feeds one after another: the first may be slow itself, the second shows whose fault it is.
    cluster.cli("stage", "snail@v1", "--nodes", "snail", "--wait", "--timeout", "60s")
    cluster.cli("stage", "snail@v1", "--nodes", "node1,node2,node3", "--wait", "--timeout", "60s")
    shown = alarm(open_page(cluster, "#/"), "node-slow", "snail")
    expect(shown).to_contain_text("sends much slower than others")
    expect(shown).to_have_count(0)


def test_many_of_a_kind_are_summed_up(cluster, page):
    names = [f"much{i}@v1" for i in range(23)]
    with ThreadPoolExecutor(4) as at_once:
        list(at_once.map(lambda name: (cluster.add(name, "huge"), cluster.cli("stage", name, "--nodes", "small")), names))
    more = alarm(page, "more", "refused")
    expect(more).to_contain_text("and 3 more of kind refused")
    expect(page.locator('[data-alarm^="refused:"]')).to_have_count(20)
    with ThreadPoolExecutor(4) as at_once:
        list(at_once.map(lambda name: cluster.cli("dataset", "rm", name), names))
    expect(more).to_have_count(0)
    expect(page.locator('[data-alarm^="refused:"]')).to_have_count(0)


def test_a_stage_that_gets_nothing(cluster, page):
    cluster.rate(1)
    cluster.cli("stage", "slow@v1", "--nodes", "node1")
    shown = alarm(page, "stage-stalled")
    expect(shown).to_contain_text("slow@v1")
    expect(shown).to_contain_text("node1")
    cluster.rate(None)
    cluster.cli("wait", "slow@v1", "--nodes", "node1", "--timeout", "60s")
    expect(shown).to_have_count(0)


def test_the_timeline_tells_it_all(cluster, open_page):
    page = open_page(cluster, "#/events?severity=error&state=checksum")
    expect(page.locator("#list tbody")).to_contain_text("do not match their checksum")
    kinds = {event["kind"] for event in cluster.get("events?limit=1000")["items"]}
    wanted = {"added", "staged", "sealed", "stage-done", "fell-back", "quarantined", "checksum", "evicted", "removed"}
    wanted |= {"refused", "shard-failed", "discarded", "stage-failed", "node-up", "node-down", "coordinator"}
    assert wanted <= kinds, wanted - kinds
    page.get_by_label("Show events of kind").select_option("quarantined")
    page.get_by_label("Show events of severity").select_option("")
    expect(page.locator("#list tbody tr").first).to_contain_text("liar is avoided")
    assert {row["kind"] for row in cluster.get("events?kind=quarantined")["items"]} == {"quarantined"}
