#!/usr/bin/env python3
"""Checks units, alert rules, dashboard, chart, image recipe and licences with their own tools."""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import helm_python
import kubernetes_validate
import yaml

import chart

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
# systemd's own score, 0 (nothing exposed) to 10. The agent keeps /dev/infiniband and io_uring, hence not lower.
EXPOSURE_MAX = 2.5
KUBERNETES = "1.28"
# What the chart's switches turn on.
VALUES = [
    {},
    {"originSecret": "s3", "env": {"AWS_REGION": "eu-1"}, "coordinator": {"storageClass": "fast"},
     "podMonitor": {"enabled": True}, "agent": {"nodeSelector": {"gpu": "yes"}, "tolerations": [], "io": "blocking"}},
]


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def units():
    with tempfile.TemporaryDirectory() as scratch:
        files = []
        for unit in sorted((DEPLOY / "systemd").glob("*.service")):
            # The binary is not installed where this runs; everything else is as it is shipped.
            copy = pathlib.Path(scratch) / unit.name
            copy.write_text(unit.read_text().replace("/usr/bin/millstream", "/bin/true"))
            files.append(copy)
        said = run("systemd-analyze", "verify", "--man=no", *files)
        if said.strip():
            sys.exit(f"systemd-analyze verify: {said}")
        for file in files:
            said = run("systemd-analyze", "security", "--offline=true", file)
            score = float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", said).group(1))
            if score > EXPOSURE_MAX:
                sys.exit(f"{file.name}: exposure {score} is over {EXPOSURE_MAX}\n{said}")
            print(f"ok    {file.name}: exposure {score} of at most {EXPOSURE_MAX}")


def metric_names():
    text = (DEPLOY.parent / "docs" / "metrics.md").read_text()
    return set(re.findall(r"`(millstream_\w+)`", text))


def expressions_are_true(where, expressions):
    """Known metrics only, and promtool can parse each."""
    known = metric_names()
    for expression in expressions:
        for name in re.findall(r"millstream_\w+", expression):
            if re.sub(r"_bucket$", "", name) not in known:
                sys.exit(f"{where}: {name} is not in docs/metrics.md")
    rules = [{"record": f"check:{i}", "expr": e} for i, e in enumerate(expressions)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "check", "rules": rules}]}, file)
        file.flush()
        run("promtool", "check", "rules", file.name)


def alerts():
    folder = DEPLOY / "prometheus"
    run("promtool", "check", "rules", folder / "millstream.rules.yaml")
    run("promtool", "test", "rules", folder / "millstream.rules.test.yaml")
    groups = yaml.safe_load((folder / "millstream.rules.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    expressions_are_true("alert rules", [rule["expr"] for rule in rules])
    operations = (DEPLOY.parent / "docs" / "operations.md").read_text()
    for rule in rules:
        if rule["alert"] not in operations:
            sys.exit(f"docs/operations.md does not say what to do about {rule['alert']}")
    print(f"ok    {len(rules)} alert rules")


def dashboard():
    sys.path.insert(0, str(DEPLOY / "grafana"))
    import make

    path = DEPLOY / "grafana" / "millstream.json"
    found = json.loads(path.read_text())
    if found != make.dashboard():
        sys.exit(f"{path.name} is not what make.py writes: run deploy/grafana/make.py")
    targets = [t["expr"] for p in found["panels"] for t in p["targets"]]
    expressions_are_true("dashboard", targets)
    places = [tuple(p["gridPos"][k] for k in "xywh") for p in found["panels"]]
    for i, (x, y, w, h) in enumerate(places):
        for X, Y, W, H in places[:i]:
            if x < X + W and X < x + w and y < Y + H and Y < y + h:
                sys.exit("panels of the dashboard overlap")
    print(f"ok    dashboard of {len(found['panels'])} panels, {len(targets)} queries")


def kubernetes():
    folder = DEPLOY / "kubernetes" / "millstream"
    for changes in VALUES:
        chart.linted(folder, changes, KUBERNETES)
        objects = chart.rendered(folder, changes)
        for thing in objects:
            valid(thing)
        kinds = {o["kind"] for o in objects}
        wanted = {"Service", "StatefulSet", "DaemonSet"} | ({"PodMonitor"} if changes else set())
        if kinds != wanted:
            sys.exit(f"the chart makes {kinds}, not {wanted}")
        selected(objects)
    for wrong in [{"agent": {"dataPath": "relative"}}, {"agnet": {}}, {"image": {"tag": ""}}]:
        if not chart.refuses(folder, wrong):
            sys.exit(f"the schema of the values takes {wrong}")
    for thing in yaml.safe_load_all((DEPLOY / "kubernetes" / "example-job.yaml").read_text()):
        valid(thing)
    print(f"ok    chart and example: lint and templates of Helm {helm_python.helm_sdk_version()}, schemas of Kubernetes {KUBERNETES}")


def valid(thing):
    if thing["kind"] == "PodMonitor":
        # Not of Kubernetes itself: only what the operator requires.
        assert thing["spec"]["podMetricsEndpoints"][0]["port"] == "http" and thing["spec"]["selector"]["matchLabels"]
        return
    kubernetes_validate.validate(thing, KUBERNETES, strict=True)


def selected(objects):
    """Selectors find the pods that they are for, and ports have the names that probes and services use."""
    for thing in objects:
        if thing["kind"] not in ("StatefulSet", "DaemonSet"):
            continue
        labels = thing["spec"]["template"]["metadata"]["labels"]
        assert thing["spec"]["selector"]["matchLabels"].items() <= labels.items(), thing["metadata"]["name"]
        container = thing["spec"]["template"]["spec"]["containers"][0]
        names = {p["name"] for p in container["ports"]}
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
            assert container[probe]["httpGet"]["port"] in names, probe


def image():
    """hadolint, and the packages that the build needs are those of `make build-deps`."""
    recipe = DEPLOY / "docker" / "Dockerfile"
    # DL3008: packages of a stable release are not pinned, so that security updates come in.
    run("hadolint", "--strict-labels", "--failure-threshold", "style", "--ignore", "DL3008", recipe)
    makefile = (DEPLOY.parent / "Makefile").read_text()
    needed = set(re.search(r"^build-deps:.*\n\t@scripts/apt-install (.*)$", makefile, re.M).group(1).split())
    first = recipe.read_text().split("\nFROM ")[1]
    missing = needed - set(first.split())
    if missing:
        sys.exit(f"the image's build stage does not install {missing}")
    print("ok    image recipe: hadolint")


def licences():
    """docs/adr/0010: everything in the SPANK plugin may be used under the GPL's version 2."""
    said = run("cargo", "tree", "--locked", "-p", "millstream-spank", "-e", "normal,no-proc-macro", "--prefix", "none", "-f", "{p}|{l}")
    lines = {line.removesuffix(" (*)") for line in said.splitlines() if "|" in line}
    fine = {"MIT", "GPL-2.0-or-later", "BSD-2-Clause", "BSD-3-Clause", "Zlib", "ISC", "Unlicense"}
    for line in lines:
        package, licence = line.rsplit("|", 1)
        if not fine & set(re.split(r" OR |/", licence)):
            sys.exit(f"{package} is {licence}: the SPANK plugin must not depend on it")
    print(f"ok    licences of {len(lines)} crates in the SPANK plugin")


if __name__ == "__main__":
    units()
    alerts()
    dashboard()
    kubernetes()
    image()
    licences()
