"""Lints and renders the Helm chart with Helm's own engine, as the package helm-python-sdk brings it."""

import helm_python
import yaml
from helm_python import chart

WARNING = 2


class Refused(Exception):
    """Helm has something against the chart."""


def linted(folder, changes, kubernetes):
    """As `helm lint --strict`; hints are let through."""
    report = chart.lint(folder, changes, strict=True, kube_version=f"v{kubernetes}.0")
    bad = [m["error"] for m in report["messages"] if m["severity"] >= WARNING] + report["errors"]
    if bad:
        raise Refused("helm lint: " + "; ".join(bad))


def rendered(folder, changes):
    """As `helm template` with these values over the defaults: every object."""
    with chart.Chart.load(folder) as loaded:
        loaded.validate_schema(changes)
        files = loaded.render(changes, name="millstream", namespace="training")
    return [d for text in files.values() for d in yaml.safe_load_all(text) if d]


def refuses(folder, changes):
    """Does the schema of the values refuse these?"""
    with chart.Chart.load(folder) as loaded:
        try:
            loaded.validate_schema(changes)
        except helm_python.errors.HelmValuesError:
            return True
    return False
