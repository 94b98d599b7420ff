"""The tutorial of the README runs as it stands there, and so do the examples."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import DEADLINE, binary, clean_environment, number_shards

HERE = Path(__file__).parent.parent


def test_the_tutorial_runs(tmp_path: Path) -> None:
    text = (HERE / "README.md").read_text()
    tutorial = text[text.index("## Tutorial") : text.index("## Other loaders")]
    code = "\n".join(re.findall(r"```python\n(.*?)```", tutorial, re.DOTALL))
    home = Path(tempfile.mkdtemp(prefix="ms-"))
    try:
        for key, content in number_shards(6, 10).items():
            (tmp_path / key).write_bytes(content)
        program = tmp_path / "tutorial.py"
        program.write_text(code)
        done = subprocess.run(
            [sys.executable, str(program)],
            env=clean_environment(MILLSTREAM_LOCAL=str(home / "m"), MILLSTREAM_BINARY=binary(), DATA=str(tmp_path)),
            capture_output=True,
            text=True,
            timeout=DEADLINE * 2,
        )
        assert done.returncode == 0, done.stderr
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("example", sorted(p.name for p in (HERE / "examples").glob("*.py")))
def test_examples_run(tmp_path: Path, example: str) -> None:
    home = Path(tempfile.mkdtemp(prefix="ms-"))
    try:
        for key, content in number_shards(6, 10).items():
            (tmp_path / key).write_bytes(content)
        done = subprocess.run(
            [sys.executable, str(HERE / "examples" / example), f"file://{tmp_path}/"],
            env={**clean_environment(MILLSTREAM_LOCAL=str(home / "m"), MILLSTREAM_BINARY=binary()), "PYTHONPATH": os.devnull},
            capture_output=True,
            text=True,
            timeout=DEADLINE * 2,
        )
        assert done.returncode == 0, done.stderr
    finally:
        shutil.rmtree(home, ignore_errors=True)
