"""The scripts of the pages, tested by Node's own runner."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import plrc.visualize

TESTS = Path(__file__).parent


def test_the_arithmetic_of_the_explorer() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not there: install Node.js 18 or newer to test the pages' scripts outside of a browser")
    pages = Path(plrc.visualize.__file__).parent / "pages"
    command = [node, "--test", str(TESTS / "features.test.mjs")]
    done = subprocess.run(
        command, env=os.environ | {"PAGES": str(pages)}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass 9" in done.stdout
