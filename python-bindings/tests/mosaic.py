"""MosaicML Streaming without all that it asks for.

It imports Hugging Face transformers and torchvision for the names of some classes, which reading shards never uses:
their modules are stood in for here. What reads is its own, unchanged code.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules in which every name is an empty class. Asked last: what is installed comes first."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in ("torchvision", "transformers"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def find(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module.__dict__["__getattr__"] = find


sys.meta_path.append(_StandIns())

import streaming  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: E402

MDSWriter = streaming.MDSWriter
StreamingDataset = streaming.StreamingDataset
