#!/usr/bin/env python3
"""Writes the reference of the Python package from its docstrings: `python-reference.py > docs/reference/python.md`."""

import importlib
import inspect
import re

MODULES = ["millstream", "millstream.stream", "millstream.torch", "millstream.fs", "millstream.dcp"]
HEAD = "# The Python package\n\nMade from the docstrings by `scripts/python-reference.py`; do not edit by hand."


def own_members(thing):
    """Public methods and properties that a class defines itself."""
    for name, member in vars(thing).items():
        if name.startswith("_") and name not in ("__iter__", "__len__", "__getitem__", "__arrow_c_stream__", "__fspath__"):
            continue
        kind = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if isinstance(kind, property) or inspect.isfunction(kind):
            yield name, kind


def signature(thing, name):
    if isinstance(thing, property):
        return name
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return name
    # Annotations are texts; defaults keep their quotes.
    text = re.sub(r"(: |-> )(['\"])(.*?)\2", r"\1\3", text)
    return name + text.replace("(self, ", "(").replace("(self)", "()").replace("(cls, ", "(")


def doc(thing):
    return inspect.cleandoc(thing.__doc__) if thing.__doc__ else ""


def describe(name, thing):
    lines = [f"### `{name}`", ""]
    if inspect.isfunction(thing):
        return [f"### `{signature(thing, name)}`", "", doc(thing), ""]
    if not inspect.isclass(thing):
        return []
    bases = [b.__name__ for b in thing.__bases__ if b not in (object, tuple)]
    lines = [f"### class `{name}`" + (f" ({', '.join(bases)})" if bases else ""), ""]
    if "__init__" in vars(thing) and inspect.isfunction(vars(thing)["__init__"]):
        lines += [f"`{signature(thing.__init__, name)}`", ""]
    lines += [doc(thing), ""]
    for field in getattr(thing, "_fields", ()):
        lines.append(f"- `{field}`: {thing.__annotations__.get(field, '')}".replace("'", ""))
    for member, found in own_members(thing):
        if doc(found):
            lines.append(f"- `{signature(found, member)}`: " + " ".join(doc(found).split()))
    return [*lines, ""]


def main():
    print(HEAD)
    for path in MODULES:
        module = importlib.import_module(path)
        print(f"\n## `{path}`\n\n{doc(module).replace('    ', '    ')}\n")
        names = getattr(module, "__all__", None) or [
            n for n, v in vars(module).items() if not n.startswith("_") and getattr(v, "__module__", None) == path
        ]
        for name in names:
            thing = getattr(module, name)
            at = getattr(thing, "__module__", "")
            if path == "millstream" or at == path:
                text = "\n".join(describe(name, thing)).rstrip()
                if text:
                    print(text + "\n")


if __name__ == "__main__":
    main()
