"""The report of real runs: its content, when it is written during training, and how it looks in a real browser."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import plrc
from plrc.config import Config
from plrc.data.manifest import read_manifest
from plrc.export import export_backbone
from plrc.files import read_json_lines, write_json
from plrc.model import build_backbone
from plrc.transfer.onnx_detector import DetectorReceipt
from plrc.visualize import charts
from plrc.visualize.report import health_share, run_section, training_seconds, write_report
from plrc.visualize.verdict import of_kind

Runs = dict[str, Path]
Tiny = Callable[..., Config]
EVIL = '<b>"x.jpg'


def test_a_run_leaves_its_report(runs: Runs) -> None:
    for name, headline in (("healthy", "Healthy"), ("ruined", "Features collapsed since"), ("idle", "Still at chance")):
        assert headline in (runs[name] / "report.html").read_text(encoding="utf-8")


def test_it_says_where_everything_is_from(runs: Runs) -> None:
    run = runs["healthy"]
    text = (run / "report.html").read_text(encoding="utf-8")
    manifest = read_manifest(run / "manifest.json")
    assert manifest["sha256"] in text and manifest["root"] in text
    start = of_kind(read_json_lines(run / "metrics.jsonl"), "start")[0]
    for name in ("plrc", "torch", "python"):
        assert f"{name} {start['versions'][name]}" in text
    receipt = json.loads(next((run / "exported").glob("*.receipt.json")).read_text())
    assert receipt["sha256"] in text and "step_00000070.pt" in text
    assert "optim.steps" in text and "health at step 70" in text
    assert dict(run_section(run)["origin"])["starting weights"] == "random weights"
    rows = {name: (here, there) for name, here, there in run_section(run)["changed"]}
    assert rows["optim.lr"] == (2e-3, 1e-3) and "model.backbone" not in rows


def test_it_names_the_weights_of_others(tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(5)
    files = {}
    for name in ("start.pth", "teacher.pth"):
        files[name] = tmp_path / name
        torch.save(build_backbone("resnet18").net.state_dict(), files[name])
    config = tiny(
        model__backbone="resnet18",
        model__init=str(files["start.pth"]),
        teacher__kind="frozen",
        teacher__backbone="resnet18",
        teacher__init=str(files["teacher.pth"]),
        teacher__size=64,
        optim__steps=1,
    )
    run = plrc.pretrain(config).path
    rows = dict(run_section(run)["origin"])
    for row, receipt, file in (
        ("starting weights", "weights.json", "start.pth"),
        ("frozen teacher", "teacher.json", "teacher.pth"),
    ):
        sha256 = json.loads((run / receipt).read_text())["content_sha256"]
        licence = "plrc does not know their licence. Check it before you use or publish the weights of this run."
        assert rows[row] == f"resnet18, {file}, SHA-256 of the tensors {sha256[:12]}. {licence}"
        assert rows[row] in (run / "report.html").read_text(encoding="utf-8")


def test_it_lists_the_exports_to_all_libraries_and_which_of_them_were_verified(runs: Runs, tmp_path: Path) -> None:
    run = shutil.copytree(runs["healthy"], tmp_path / "run")
    plain = export_backbone(run, "safetensors")
    unverified = export_backbone(run, "detectron2")
    if not unverified.note:
        pytest.skip("detectron2 is installed here")
    detector = DetectorReceipt(
        file="detector.onnx",
        sha256="f" * 64,
        model="model.safetensors",
        detector="d_fine",
        task="detection",
        classes=("cell",),
        inputs={},
        outputs={},
        batches=(1,),
        images="generated scenes",
        predictions=100,
        unmatched=0,
        largest_score_difference=0.0,
        largest_box_difference=0.0,
        versions={},
    )
    write_json(run / "exported" / "detector.onnx.receipt.json", dataclasses.asdict(detector))
    origin = run_section(run)["origin"]
    verified = [text for name, text in origin if name == "exported and verified"]
    assert len(verified) == 2
    assert f"{plain.file}: {plain.tensors} tensors equal in {plain.target}, step 70" in verified
    proof = f"{unverified.tensors} tensors equal in the file, step 70; {unverified.note}"
    assert ("exported", f"{unverified.file}: {proof}") in origin
    assert "f" * 64 not in dict(origin).values()


def test_curves_are_drawn_where_the_records_say(runs: Runs) -> None:
    records = of_kind(read_json_lines(runs["healthy"] / "metrics.jsonl"), "train")
    groups = {group["title"]: group["plots"] for group in run_section(runs["healthy"])["groups"]}
    for title, plot, name, line in (
        ("Losses and their chance levels", "Point contrast", "point_kl", 1),
        ("Losses and their chance levels", "Point contrast", "point_chance", 2),
        ("Schedules", "Learning rate", "lr", 1),
    ):
        svg = next(str(one["svg"]) for one in groups[title] if one["title"] == plot)
        drawn = re.findall(rf'<path d="([^"]*)"[^>]*stroke: var\(--c{line}\)', svg)
        points = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", max(drawn, key=len)), dtype=float)
        values = np.array([[record["step"], record[name]] for record in records])
        assert len(points) == len(values) == 35
        for axis, direction in ((0, 1), (1, -1)):  # a page's y points down
            assert np.corrcoef(points[:, axis], values[:, axis])[0, 1] == pytest.approx(direction, abs=1e-6)


def test_the_cost_of_health_is_recorded(runs: Runs) -> None:
    records = read_json_lines(runs["healthy"] / "metrics.jsonl")
    lines, checks = of_kind(records, "train"), of_kind(records, "health")
    assert len(checks) == 8 and all(check["seconds"] > 0 for check in checks)
    seconds = sum(2 * 8 / line["images_per_second"] for line in lines)
    assert training_seconds(records, 8) == pytest.approx(seconds)
    share = health_share(records, 8)
    assert share is not None and 0 < share < 1
    assert f"health checks {share:.1%} of it" in (runs["healthy"] / "report.html").read_text(encoding="utf-8")
    old = [{name: value for name, value in record.items() if name != "seconds"} for record in records]
    assert health_share(old, 8) is None


def test_many_values_are_thinned_to_their_means() -> None:
    steps, values = list(range(10_001)), [float(step % 7) for step in range(10_001)]
    xs, ys = charts.thinned(steps, values)
    assert len(xs) == len(ys) == charts.MAX_POINTS
    assert xs == sorted(xs) and np.mean(ys) == pytest.approx(3, abs=0.05)
    assert charts.thinned([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def test_it_is_written_as_the_run_goes(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report after each save is asked for: the first one shows the first checkpoint."""
    from plrc.visualize import report

    written: list[str] = []
    original = report.write_report

    def recording(run: Path) -> None:
        original(run)
        written.append((run / "report.html").read_text(encoding="utf-8"))

    monkeypatch.setattr(report, "write_report", recording)
    run = plrc.pretrain(tiny(run__checkpoint_every_steps=2, run__report_every_minutes=1e-9))
    assert len(written) == 3 and "step 2 of 4" in written[0]
    assert "step 4 of 4" in (run.path / "report.html").read_text(encoding="utf-8")


def test_between_two_reports_some_minutes_pass(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from plrc.visualize import report

    made: list[str] = []
    original = report.run_report
    monkeypatch.setattr(report, "run_report", lambda run: made.append(str(run)) or original(run))
    plrc.pretrain(tiny(optim__steps=3, run__checkpoint_every_steps=1))
    assert len(made) == 2  # at the first save, and at the end


def test_no_report_is_written_if_disabled_and_a_failing_one_never_stops_a_run(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny(optim__steps=2, run__report_every_minutes=0.0)
    run = plrc.pretrain(config)
    assert not (run.path / "report.html").exists()
    (run.path / "report.html").mkdir()  # a file cannot take this name
    longer = {"optim.steps": 4, "run.resume": True, "run.allow_changes": True, "run.report_every_minutes": 1e-9}
    run = plrc.pretrain(config.with_values(longer | {"run.checkpoint_every_steps": 3}))
    assert run.finished and run.step == 4
    assert caplog.text.count("report.html (IsADirectoryError") == 1


def fits(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(runs: Runs, page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto((runs["healthy"] / "report.html").as_uri())
    assert page.problems == []
    assert page.title() == "healthy: Healthy"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", ground)[0])
    assert red < 60 if scheme == "dark" else red > 200
    assert page.locator("svg").count() == 12
    for plot in page.locator("svg").all():
        box = plot.bounding_box()
        assert box["width"] > 200 and box["height"] > 80
        assert plot.get_attribute("aria-label")
    line = page.locator("svg path[style*='--c1']").last
    assert line.evaluate("e => getComputedStyle(e).stroke") not in ("none", ground)


def test_on_a_phone(runs: Runs, page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto((runs["ruined"] / "report.html").as_uri())
    assert fits(page)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert fits(page) and page.problems == []
    page.get_by_text("lower optim.lr").first.scroll_into_view_if_needed()


def test_names_from_the_file_system_are_text(tiny: Tiny, tmp_path: Path, page: Any) -> None:
    """A run folder, a data folder and an unreadable image, each with a name that is a tag."""
    images = tmp_path / f"{EVIL} data"
    images.mkdir()
    for i in range(12):
        Image.fromarray(np.full((40, 40, 3), 20 * i, dtype=np.uint8)).save(images / f"{i}.jpg")
    (images / EVIL).write_bytes(b"no image")
    config = tiny(data__source=str(images), data__held_out=0, optim__steps=2, data__max_unreadable_fraction=1.0)
    run = plrc.pretrain(config.with_values({"run.out": str(tmp_path / f"{EVIL} run")})).path
    page.goto(write_report(run).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.problems == []
    shown = page.inner_text("body")
    for text in (f"{EVIL} run", f"{EVIL} data", f"cannot read {EVIL}"):
        assert text in shown
    assert page.evaluate("[...document.querySelectorAll('b')].every(b => !b.textContent.includes('x.jpg'))")
    page.set_viewport_size({"width": 360, "height": 740})
    assert fits(page)
