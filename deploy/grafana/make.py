#!/usr/bin/env python3
"""Writes millstream.json, the Grafana dashboard: panels are listed here, their geometry is worked out."""

import json
import pathlib

PANELS = [
    # title, unit, [(expression, legend)], kind
    ("Nodes up", "short", [('millstream_nodes{state="up"}', "up")], "stat"),
    ("Nodes down", "short", [('millstream_nodes{state="down"}', "down")], "stat"),
    ("Jobs that wait for data", "short", [('millstream_jobs{state="staging"}', "staging")], "stat"),
    ("Checksum failures, 24 h", "short", [("increase(millstream_cluster_checksum_failures_total[24h])", "failures")], "stat"),
    ("Bytes received by source", "Bps",
     [("sum by (source) (rate(millstream_cluster_received_bytes_total[1m]))", "{{source}}")], "timeseries"),
    ("Bytes of jobs by source", "Bps",
     [("sum by (source) (rate(millstream_job_bytes_total[5m]))", "{{source}}")], "timeseries"),
    ("Mean wait of jobs after their allocation", "s",
     [("rate(millstream_job_wait_seconds_total[30m]) / rate(millstream_job_waits_total[30m])", "wait")], "timeseries"),
    ("Jobs", "short", [("sum by (state) (millstream_jobs)", "{{state}}")], "timeseries"),
    ("Stages", "short", [("sum by (state) (millstream_stages)", "{{state}}")], "timeseries"),
    ("Assignments", "ops",
     [("rate(millstream_assignments_total[1m])", "handed out"),
      ("sum by (outcome) (rate(millstream_assignments_ended_total[1m]))", "{{outcome}}")], "timeseries"),
    ("Faults", "ops",
     [("rate(millstream_requeues_total[5m])", "extents handed out again"),
      ("rate(millstream_leases_expired_total[5m])", "leases expired"),
      ("rate(millstream_quarantines_total[5m])", "quarantines"),
      ("rate(millstream_disputes_total[5m])", "disputes")], "timeseries"),
    ("Fallbacks", "short", [("sum by (from, to) (millstream_cluster_fallbacks)", "{{from}} to {{to}}")], "timeseries"),
    ("Disk of agents", "bytes", [("sum by (class) (millstream_cache_bytes)", "{{class}}")], "timeseries"),
    ("Extents, 99 % within", "s",
     [("histogram_quantile(0.99, sum by (le) (rate(millstream_extent_duration_seconds_bucket[5m])))", "p99")], "timeseries"),
]


def panel(number, title, unit, targets, kind, place):
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": number,
        "title": title,
        "type": kind,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {},
        "targets": [
            {"refId": chr(65 + i), "expr": expr, "legendFormat": legend, "datasource": source}
            for i, (expr, legend) in enumerate(targets)
        ],
    }


def dashboard():
    panels, x, y, row = [], 0, 0, 0
    for number, (title, unit, targets, kind) in enumerate(PANELS, 1):
        width, height = (6, 4) if kind == "stat" else (12, 8)
        if x + width > 24:
            x, y = 0, y + row
        panels.append(panel(number, title, unit, targets, kind, {"x": x, "y": y, "w": width, "h": height}))
        x, row = x + width, height
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "uid": "millstream",
        "title": "Millstream",
        "tags": ["millstream"],
        "schemaVersion": 38,
        "version": 1,
        "refresh": "15s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }


if __name__ == "__main__":
    path = pathlib.Path(__file__).with_name("millstream.json")
    path.write_text(json.dumps(dashboard(), indent=2) + "\n")
