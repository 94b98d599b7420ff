"""The API does what its description says: schemathesis asks everything that the description allows, and some that it does not."""

import subprocess
import sys

import pytest

DATASET = "d@v1"


@pytest.fixture(scope="module")
def cluster(make_cluster):
    cluster = make_cluster({"node1": {}, "node2": {}})
    cluster.put("d", 30, 100_000)
    cluster.add(DATASET, "d")
    cluster.cli("stage", DATASET, "--wait", "--timeout", "60s")
    return cluster


def test_schemathesis_finds_nothing(cluster, tmp_path):
    # Names that exist, so that more than "no such dataset" is looked at. The stream has no end: the page's tests follow it.
    config = tmp_path / "schemathesis.toml"
    config.write_text('[parameters]\n"path.dataset" = "d@v1"\n"path.node" = "node1"\n')
    for arguments in (["--config-file", str(config)], []):
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", *arguments, "run", f"{cluster.url}api/v1/openapi.json",
                "--checks", "all", "--exclude-path", "/api/v1/stream", "--max-examples", "40", "--seed", "1",
                "--generation-database", "none",
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
