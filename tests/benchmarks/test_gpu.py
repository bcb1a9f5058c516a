"""The calls for a GPU, tried with tiny sizes on a CPU, on data that prepare.py made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from plrc.scenes import write_scenes

ROOT = Path(__file__).parents[2]
RESULTS = {
    "checks": ("tests.xml", "objectives.json", "step-4.json", "loader.json", "epoch.json"),
    "scenes": ("scenes.jsonl", "scenes.txt", "scenes.log"),
    "aquarium": ("aquarium.jsonl", "aquarium.txt", "aquarium.log"),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with a data set of generated scenes and a teacher with random weights."""
    timm = pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("gpu")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("data", "wheels"))
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    scenes = folder / "scenes"
    write_scenes(scenes, {"train": 12, "val": 2, "test": 2}, size=96)
    data = folder / "coco"
    (data / "annotations").mkdir(parents=True)
    (data / "images").mkdir()
    for split in ("train", "val", "test"):
        content = json.loads((scenes / split / "annotations.json").read_text())
        for image in content["images"]:
            name = f"{split}-{Path(image['file_name']).name}"
            shutil.copyfile(scenes / split / image["file_name"], data / "images" / name)
            image["file_name"] = name
        (data / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), folder / "teacher.safetensors")
    prepare = folder / "benchmarks" / "gpu" / "prepare.py"
    arguments = ["--data", data, "--weights", folder / "teacher.safetensors", "--side", "64"]
    subprocess.run([sys.executable, prepare, *arguments], check=True)
    return folder


def call(checkout: Path, name: str, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SMALL": "1", "OUT": str(out), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", checkout / "benchmarks" / "gpu" / "run.sh", name],
        env=environment | {"PROCESSES": "1", "WORK": str(out / "work")} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_prepared_images_are_smaller_and_so_are_their_boxes(checkout: Path) -> None:
    original = json.loads((checkout / "coco" / "annotations" / "instances_test.json").read_text())
    data = checkout / "benchmarks" / "gpu" / "data" / "images"
    prepared = json.loads((data / "annotations" / "instances_test.json").read_text())
    for before, after in zip(original["annotations"], prepared["annotations"], strict=True):
        assert after["bbox"] == pytest.approx([value * 64 / 96 for value in before["bbox"]], abs=0.01)
        assert after["area"] == pytest.approx(before["area"] * (64 / 96) ** 2)
    for image in prepared["images"]:
        assert (image["width"], image["height"]) == (64, 64)
        with Image.open(data / "images" / image["file_name"]) as pixels:
            assert pixels.size == (64, 64)


def results(checkout: Path, name: str, out: Path) -> list[str]:
    """Make a call; returns the lines of its study."""
    done = call(checkout, name, out)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in RESULTS[name]:
        assert (out / file).stat().st_size > 0, file
    lines = out / f"{name}.jsonl"
    return lines.read_text().splitlines() if lines.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checks", "aquarium"])
def test_each_call_leaves_its_results(name: str, checkout: Path, tmp_path: Path) -> None:
    results(checkout, name, tmp_path)


@pytest.mark.slow
def test_a_study_is_continued_from_its_lines(checkout: Path, tmp_path: Path) -> None:
    lines = results(checkout, "scenes", tmp_path / "first")
    kept = checkout / "benchmarks" / "gpu" / "data" / "scenes.jsonl"
    kept.write_text(lines[0] + "\n")
    continued = results(checkout, "scenes", tmp_path / "second")
    assert continued[0] == lines[0] and len(continued) == len(lines) == 2


def test_an_unknown_call_is_refused(checkout: Path, tmp_path: Path) -> None:
    done = call(checkout, "everything", tmp_path)
    assert done.returncode == 2 and done.stderr == "usage: benchmarks/gpu/run.sh checks|scenes|aquarium\n"
