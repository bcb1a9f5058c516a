"""`python -m benchmarks` as a real process: its table, its JSON file, its help, and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.__main__ import KINDS, main

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_benchmark_prints_its_table_and_writes_its_json(tmp_path: Path) -> None:
    file = tmp_path / "loader.json"
    sizes = ["--images", "2", "--batch", "2", "--height", "48", "--width", "64", "--size", "32", "--repeats", "1"]
    done = run("loader", *sizes, "--json", str(file))
    assert done.returncode == 0, done.stderr
    content = json.loads(file.read_text())
    assert content["kind"] == "loader" and content["settings"]["images"] == 2
    assert done.stdout.startswith("loader: images 2, height 48, width 64, size 32, batch 2, repeats 1\n")
    assert "images_per_second_per_core" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_help_explains_every_option(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([kind, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "--json FILE" in text
    for line in text.splitlines():
        option = line.strip().partition(" ")[0]
        if option.startswith("--") and option != "--json":
            assert f"\n    {option[2:].replace('-', '_')}: " in text  # its entry in the docstring's Args


def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loader", "--images", "0"]) == 2
    assert capsys.readouterr().err == "benchmarks: images and batch must be >= 1, got 0 and 32\n"
