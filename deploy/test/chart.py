"""Renders the Helm chart: with helm where it is installed, else the part of its template language that the chart uses.

Anything that this part does not know is an error, so that the chart cannot grow beyond what is checked.
"""

import json
import re
import shutil
import subprocess
import tempfile

import yaml

TOKEN = re.compile(r"(\s*)\{\{(-?)\s*(.*?)\s*(-?)\}\}(\n?)", re.S)


class Unknown(Exception):
    """Not of the part of the language that is known here."""


def with_helm(chart, values):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        subprocess.run(["helm", "lint", "--strict", chart, "-f", file.name], check=True)
        done = subprocess.run(
            ["helm", "template", "millstream", chart, "-f", file.name], check=True, capture_output=True, text=True
        )
        return done.stdout


def lookup(path, scope):
    value = scope
    for part in path.lstrip("$.").split("."):
        if part not in value:
            raise Unknown(f"there is no {path}")
        value = value[part]
    return value


def evaluate(expression, scope, variables):
    head, *filters = [part.strip() for part in expression.split("|")]
    value = variables[head] if head in variables else lookup(head, scope) if head.startswith(".") else None
    if value is None:
        raise Unknown(f"{{{{ {expression} }}}}")
    for name in filters:
        if name not in ("quote", "toJson"):
            raise Unknown(f"filter {name}")
        value = json.dumps(str(value) if name == "quote" else value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def tokens(text):
    """Texts and actions in turn; `{{-` eats the white space before it, as Go does."""
    out, at = [], 0
    for match in TOKEN.finditer(text):
        space, left, action, right, newline = match.groups()
        if right:
            raise Unknown("-}}")
        out.append(("text", text[at : match.start()] + ("" if left else space)))
        out.append(("action", action))
        at = match.end() - len(newline)
    return out + [("text", text[at:])]


def render(text, scope):
    out, rest = [], tokens(text)

    def block(at, variables, write):
        while at < len(rest):
            kind, value = rest[at]
            at += 1
            if kind == "text":
                if write:
                    out.append(value)
            elif value == "end":
                return at
            elif value.startswith("if "):
                at = block(at, variables, write and bool(lookup(value[3:], scope)))
            elif match := re.fullmatch(r"range (\$\w+), (\$\w+) := (\S+)", value):
                key, item, path = match.groups()
                entries = sorted(lookup(path, scope).items()) if write else []
                for entry in entries:
                    block(at, {**variables, key: entry[0], item: entry[1]}, write)
                at = block(at, variables, False)
            elif write:
                out.append(evaluate(value, scope, variables))
        return at

    block(0, {}, True)
    return "".join(out)


def rendered(chart, changes):
    """Every object of the chart with these values over its defaults; who rendered it."""
    def merge(base, over):
        return {**base, **{k: merge(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) and base[k] else v
                           for k, v in over.items()}}
    values = merge(yaml.safe_load((chart / "values.yaml").read_text()), changes)
    if shutil.which("helm"):
        text, by = with_helm(chart, values), "helm"
    else:
        scope = {"Values": values, "Release": {"Name": "millstream"}}
        templates = sorted((chart / "templates").glob("*.yaml"))
        text, by = "\n---\n".join(render(t.read_text(), scope) for t in templates), "the renderer of this test"
    return values, [d for d in yaml.safe_load_all(text) if d], by
