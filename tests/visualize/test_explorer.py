"""The explorer's page in a real browser, made by the command line from a real run, against a computation in NumPy."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.export.runs import names, saved_run
from tests.visualize.conftest import EVIL, Trained

from plrc.cli import main
from plrc.cli.visualize import _load_network
from plrc.config import Config, DataConfig
from plrc.data.decode import decode
from plrc.data.manifest import write_manifest
from plrc.data.shard_writer import write_shards
from plrc.data.sources import find_images
from plrc.engine.checkpoint import load_checkpoint
from plrc.engine.learner import Learner
from plrc.model import build_backbone
from plrc.visualize.dense_features import dense_features, native_stride
from plrc.visualize.explorer import _read_images
from plrc.visualize.explorer_inputs import ExplorerConfig, named_images, run_networks
from plrc.visualize.figures import heat_colors

STRIDE, SIZE = 4, 64
SIDE = SIZE // STRIDE
QUANTISED = 0.01  # all 128 components are kept: what is left is a byte's rounding


@pytest.fixture(scope="session")
def made(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of page.html and of png/; the seventh file is not an image."""
    out = tmp_path_factory.mktemp("page")
    images = out / "images"
    shutil.copytree(trained.images, images)
    (images / "<i>broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    command = ["visualize", str(trained.run), "--images", str(images), "--out", str(out / "page.html")]
    command += ["--with", "random", "--size", str(SIZE), "--stride", str(STRIDE), "--width", "128"]
    command += ["--png", str(out / "png"), "--points", "0.25", "0.25", "0.5", "0.75"]
    assert main(command) == 0
    return out


@pytest.fixture(scope="session")
def exact(trained: Trained) -> dict[str, dict[str, NDArray[np.float32]]]:
    """{network and step: {image: unit features [h, w, C]}} in full precision."""
    images, positions = named_images([str(trained.images)], 50)
    shown_images, notes = _read_images(images, positions, DataConfig(), ExplorerConfig(SIZE, STRIDE))
    assert notes == []
    out: dict[str, dict[str, NDArray[np.float32]]] = {}
    for network in run_networks(trained.run, 5):
        backbone, level = network.load()
        own = native_stride(backbone.eval(), level)
        by_name = out[f"{network.label} {network.step}"] = {}
        for image in shown_images:
            features = dense_features(backbone, level, own, image.pixels, STRIDE)
            by_name[image.name] = features.permute(1, 2, 0).numpy()
    return out


@pytest.fixture
def opened(page: Any, made: Path) -> Iterator[Any]:
    page.goto((made / "page.html").as_uri())
    page.wait_for_selector("#others .other")
    yield page
    assert page.problems == []


def shown(page: Any, panel: int) -> NDArray[np.float64]:
    """The cosines [h, w] that a panel's colors stand for."""
    pixels = page.evaluate(
        """(i) => { const c = document.querySelectorAll("#panels canvas")[i];
        return [c.height, c.width, ...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]; }""",
        panel,
    )
    colors = np.array(pixels[2:]).reshape(pixels[0], pixels[1], 4)[..., :3]
    distance = np.abs(colors[:, :, None].astype(int) - heat_colors()[None, None].astype(int)).sum(axis=-1)
    assert distance.min(axis=2).max() == 0  # all are colors of the table
    words = page.locator("#panels p").nth(panel).inner_text().split()
    low, high = float(words[1]), float(words[3])
    return np.asarray(low + (high - low) * distance.argmin(axis=2) / 255)


def point_at(page: Any, panel: int, place: tuple[int, int]) -> None:
    """Move the mouse to the middle of a place (row, column) of a panel."""
    page.locator("#panels .picture").nth(panel).scroll_into_view_if_needed()
    box = page.locator("#panels .picture").nth(panel).bounding_box()
    page.mouse.move(
        box["x"] + (place[1] + 0.5) / SIDE * box["width"], box["y"] + (place[0] + 0.5) / SIDE * box["height"]
    )
    drawn(page)


def drawn(page: Any) -> None:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def ring(page: Any, panel: int = 0) -> tuple[int, int]:
    """The place (row, column) of a panel's ring."""
    x, y = (
        page.locator("#panels .ring").nth(panel).evaluate("(r) => [parseFloat(r.style.left), parseFloat(r.style.top)]")
    )
    return int(y / 100 * SIDE), int(x / 100 * SIDE)


def image_name(page: Any) -> str:
    return str(page.locator("#name").text_content()).split(": ", 1)[1]


def test_the_heat_is_the_affinity_of_the_pointed_place(opened: Any, exact: dict[str, Any]) -> None:
    assert opened.locator("#panels figcaption").all_inner_texts() == ["student, step 6", "teacher, step 6", "random"]
    for place in ((4, 4), (12, 8), (15, 0)):
        point_at(opened, 0, place)
        for panel, network in enumerate(("student 6", "teacher 6")):
            features = exact[network][image_name(opened)]
            expected = features @ features[place]
            cosines = shown(opened, panel)
            step = np.ptp(expected) / 255
            assert np.unravel_index(cosines.argmax(), cosines.shape) == place == ring(opened, panel)
            assert np.abs(cosines - expected).max() < QUANTISED + step
            second = np.where(np.arange(cosines.size).reshape(cosines.shape) == cosines.argmax(), -1, cosines).argmax()
            assert expected.flat[second] > np.sort(expected.flat)[-2] - QUANTISED - step  # the second highest as well
            words = opened.locator("#panels p").nth(panel).inner_text().split()
            assert abs(float(words[1]) - expected.min()) < QUANTISED and float(words[3]) == 1.0


def test_random_is_where_the_run_started(opened: Any, trained: Trained) -> None:
    config = Config.load(trained.run / "config.toml")
    start = Learner(config, torch.device("cpu")).student.backbone.eval()
    point_at(opened, 2, (8, 8))
    image = decode(trained.images / image_name(opened))
    features = dense_features(start, config.model.largest_stride, 8, image, STRIDE).permute(1, 2, 0).numpy()
    assert np.abs(shown(opened, 2) - features @ features[8, 8]).max() < QUANTISED
    assert np.abs(shown(opened, 2) - shown(opened, 0)).max() > 3 * QUANTISED


def test_the_slider_goes_through_the_checkpoints(opened: Any, exact: dict[str, Any]) -> None:
    point_at(opened, 0, (7, 9))
    opened.locator("#step").fill("0")
    drawn(opened)
    assert opened.locator("#panels figcaption").all_inner_texts()[:2] == ["student, step 3", "teacher, step 3"]
    features = exact["student 3"][image_name(opened)]
    assert np.abs(shown(opened, 0) - features @ features[7, 9]).max() < QUANTISED + 0.005


def test_click_pins_and_another_click_on_the_place_lets_go(opened: Any) -> None:
    point_at(opened, 0, (3, 5))
    opened.mouse.down()
    opened.mouse.up()
    point_at(opened, 1, (10, 10))
    assert ring(opened) == (3, 5) and "pinned" in opened.locator("#state").inner_text()
    point_at(opened, 1, (3, 5))
    opened.mouse.down()
    opened.mouse.up()
    point_at(opened, 1, (10, 10))
    assert ring(opened) == (10, 10) == ring(opened, 2)


def test_keys(opened: Any) -> None:
    point_at(opened, 0, (8, 8))
    opened.locator("#panels").focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "Shift+ArrowLeft"):
        opened.keyboard.press(key)
    drawn(opened)
    assert ring(opened) == (10, 5)
    opened.keyboard.press("Enter")
    point_at(opened, 0, (1, 1))
    assert ring(opened) == (10, 5)
    opened.keyboard.press("ArrowUp")
    opened.keyboard.press("Escape")
    drawn(opened)
    assert ring(opened) == (9, 5) and "pointed" in opened.locator("#state").inner_text()
    first = image_name(opened)
    opened.keyboard.press("n")
    drawn(opened)
    second = image_name(opened)
    opened.keyboard.press("p")
    opened.keyboard.press("p")
    drawn(opened)
    assert len({first, second, image_name(opened)}) == 3 and ring(opened) == (9, 5)
    opened.locator("#temperature").evaluate("(slider) => { slider.disabled = false; slider.focus(); }")
    opened.keyboard.press("ArrowRight")  # moves the slider, not the point
    drawn(opened)
    assert ring(opened) == (9, 5)


def test_touch(opened: Any) -> None:
    box = opened.locator("#panels .picture").nth(1).bounding_box()
    opened.touchscreen.tap(box["x"] + 2.5 / SIDE * box["width"], box["y"] + 6.5 / SIDE * box["height"])
    drawn(opened)
    assert ring(opened) == (6, 2) == ring(opened, 1)
    assert "pinned" in opened.locator("#state").inner_text()


def test_nearest_neighbors_in_other_images(opened: Any, exact: dict[str, Any]) -> None:
    point_at(opened, 0, (6, 10))
    opened.mouse.down()
    opened.mouse.up()
    opened.wait_for_timeout(400)
    name = image_name(opened)
    query = exact["student 6"][name][6, 10]
    captions = opened.locator("#others .other span").all_inner_texts()
    neighbors = {caption.split(" ", 1)[1]: float(caption.split(" ", 1)[0]) for caption in captions}
    others = {other: features @ query for other, features in exact["student 6"].items() if other != name}
    assert neighbors.keys() == others.keys() and len(others) == 5
    assert list(neighbors.values()) == sorted(neighbors.values(), reverse=True)
    for other, cosines in others.items():
        assert neighbors[other] == pytest.approx(cosines.max(), abs=QUANTISED)
    best = captions[0].split(" ", 1)[1]
    opened.locator("#others .other").first.click()
    drawn(opened)
    assert image_name(opened) == best and "pinned" in opened.locator("#state").inner_text()
    assert others[best][ring(opened)] > others[best].max() - QUANTISED


def test_attention_sharpens_with_the_temperature_and_colors_are_components(opened: Any) -> None:
    point_at(opened, 0, (8, 8))
    opened.locator("#mode").select_option("softmax")

    def share(temperature: str) -> float:
        opened.locator("#temperature").fill(temperature)
        drawn(opened)
        return float(opened.locator("#panels p").first.inner_text().split("has ")[1].split(" %")[0])

    assert 100 / SIDE**2 < share("0") < share("-1") < share("-2") <= 100
    opened.locator("#mode").select_option("colors")
    drawn(opened)
    pixels = opened.evaluate(
        """() => { const c = document.querySelector("#panels canvas");
        return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]; }"""
    )
    colors = np.array(pixels).reshape(-1, 4)[:, :3]
    assert len(np.unique(colors, axis=0)) > SIDE and np.ptp(colors, axis=0).min() > 60


def test_file_names_are_text(opened: Any) -> None:
    names = opened.locator("#strip button").evaluate_all("(all) => all.map((b) => b.title)")
    assert set(names) == {*EVIL, "plain.jpg", "other.jpg", "third.jpg"}
    foreign = opened.locator("b, i, script:not([id])").evaluate_all("(all) => all.map((one) => one.textContent)")
    assert not any("x.jpg" in text or "broken" in text for text in foreign)
    assert "<i>broken.jpg" in opened.locator("body").inner_text()  # left out, and named
    assert opened.evaluate("document.querySelector('meta[http-equiv]').content").startswith("default-src 'none'")


def test_no_other_script_runs(opened: Any) -> None:
    opened.evaluate(
        """() => { const s = document.createElement("script"); s.textContent = "window.intruder = 1";
        document.body.append(s); }"""
    )
    assert opened.evaluate("window.intruder") is None
    assert any("Content Security Policy" in problem for problem in opened.problems)
    opened.problems.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_light_and_dark(opened: Any, scheme: str) -> None:
    opened.set_viewport_size({"width": 360, "height": 740})
    opened.emulate_media(color_scheme=scheme)
    drawn(opened)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(int(part) for part in background.removeprefix("rgb(").rstrip(")").split(",")) / 3
    assert lightness < 60 if scheme == "dark" else lightness > 200
    widths = opened.locator("#panels .picture").evaluate_all("(all) => all.map((p) => p.offsetWidth)")
    assert min(widths) > 120  # two side by side


def test_regions_and_views_are_in_the_page(opened: Any) -> None:
    assert opened.locator(".samples img").count() == 3
    sizes = opened.locator(".samples img, .batch img").evaluate_all("(all) => all.map((i) => i.naturalWidth)")
    assert min(sizes) > 400
    assert "grid 4 x 4" in opened.locator("main").inner_text()


def test_pictures_for_papers(made: Path) -> None:
    names = sorted(path.name for path in (made / "png").iterdir())
    assert len(names) == 2 * 6 + 3 + 1
    assert {"plain.affinity.png", "plain.colors.png", "views-1.png", "batch.png"} <= set(names)
    for path in (made / "png").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 100, path


def test_fifty_images_stay_in_the_budget(trained: Trained, tmp_path: Path, page: Any, capsys: Any) -> None:
    images = tmp_path / "images"
    images.mkdir()
    files = sorted((trained.images).glob("*.jpg"))
    for i in range(60):
        shutil.copy(files[i % len(files)], images / f"{i}.jpg")
    out = tmp_path / "page.html"
    command = ["visualize", str(trained.run), "--images", str(images), "--out", str(out), "--steps", "1"]
    command += ["--samples", "0", "--size", "64", "--stride", "8"]
    assert main([*command, "--megabytes", "1.1"]) == 0
    assert out.stat().st_size <= 1.1e6
    output = capsys.readouterr().out
    assert "50 of 60 images" in output and "to stay below 1.1 MB: 32 components per place instead of 128" in output
    page.goto(out.as_uri())
    page.wait_for_selector("#others .other")
    assert page.locator("#strip button").count() == 50 and page.locator("#others .other").count() == 12
    assert page.problems == []
    assert main([*command, "--megabytes", "0.4"]) == 2
    assert "write more megabytes, or fewer images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["{none}", "--images", "{images}"], "is not a run folder"),
        (["{empty}", "--images", "{images}"], "has no checkpoint"),
        (["{run}"], "no images named: write --images"),
        (["{run}", "--images", "{none}"], "does not exist"),
        (["{run}", "--images", "{broken}"], "none of the 1 images can be read"),
        (["{run}", "--images", "{images}/plain.jpg", "{none}"], "is not an image file"),
        (["{run}", "--images", "{images}", "--stride", "3"], "--stride must be one of 2, 4, 8, 16, 32, got 3"),
        (["{run}", "--images", "{images}", "--with", "{none}"], "does not exist; initial weights are"),
        (["{run}", "--images", "{images}", "--with", "random", "random"], "twice"),
        (["{run}", "--images", "{images}", "--points", "2", "0.5"], "write shares of an image's width and height"),
        (["{run}", "--images", "{images}", "--limit", "0"], "--limit must be >= 1, got 0"),
        (["{run}", "--images", "{images}", "--wiht", "random"], "did you mean --with?"),
    ],
)
def test_errors_are_one_sentence(
    trained: Trained, tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(trained.run / "config.toml", empty)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    places = {
        "none": tmp_path / "nothing",
        "empty": empty,
        "run": trained.run,
        "images": trained.images,
        "broken": broken,
    }
    out = tmp_path / "page.html"
    assert main(["visualize", *(option.format(**places) for option in options), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not out.exists()


def panels(path: Path) -> list[dict[str, Any]]:
    match = re.search(r'id="explorer-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert match
    return list(json.loads(match[1])["panels"])


def test_networks_whose_labels_are_shortened_alike_have_panels_of_their_own(trained: Trained, tmp_path: Path) -> None:
    files = [tmp_path / name / ("long-" * 9) / "weights.safetensors" for name in "ab"]
    for file in files:
        file.parent.mkdir(parents=True)
        shutil.copy(next((trained.run / "exported").glob("*.safetensors")), file)
    out = tmp_path / "page.html"
    command = ["visualize", str(trained.run), "--images", str(trained.images / "plain.jpg"), "--out", str(out)]
    command += ["--with", *map(str, files), "--steps", "1", "--size", "32", "--samples", "0"]
    assert main(command) == 0
    assert [panel["members"] for panel in panels(out)] == [[0], [1], [2], [3]]
    assert panels(out)[2]["label"] == panels(out)[3]["label"]


def test_a_file_that_names_no_network_has_that_of_the_run_or_is_a_resnet(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    name = "timm:test_efficientnet"
    backbone = build_backbone(name)
    run = saved_run(tmp_path / "run", names(backbone), backbone=name)
    config = Config.from_dict(load_checkpoint(run / "checkpoints" / "step_00000007.pt")["config"])
    config.save(run / "config.toml")
    same = tmp_path / "same.pth"
    torch.save(backbone.net.state_dict(), same)
    out = tmp_path / "page.html"
    command = ["visualize", str(run), "--images", str(trained.images / "plain.jpg"), "--out", str(out)]
    command += ["--size", "64", "--samples", "0", "--with"]
    assert main([*command, str(same)]) == 0
    assert [panel["members"] for panel in panels(out)] == [[0], [1], [2]]
    other = tmp_path / "other.pth"
    torch.save(build_backbone("timm:resnet10t").net.state_dict(), other)
    assert main([*command, str(other)]) == 2
    resnet = tmp_path / "resnet.pth"
    torch.save(build_backbone("resnet18").net.state_dict(), resnet)
    assert _load_network(str(resnet), config, "")[0].name == "resnet18"


def test_shards_are_shown_like_folders(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The images, and those of the run, lie in shards."""
    packed, run, out = tmp_path / "shards", tmp_path / "run", tmp_path / "page.html"
    own = find_images(DataConfig(source=Config.load(trained.run / "config.toml").data.source))
    write_shards(own, packed, "", 1.0, lambda done, total: None)
    shutil.copytree(trained.run, run)
    write_manifest(run / "manifest.json", find_images(DataConfig(source=str(packed))), range(2, len(own)), [0, 1])
    command = ["visualize", str(run), "--images", str(packed), "--out", str(out), "--steps", "1", "--size", "32"]
    assert main([*command, "--limit", "6"]) == 0
    assert "cannot be drawn" not in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    assert text.count("regions and crops of") == 3 and text.count('id="picture-') == 6


def test_a_run_without_its_images_still_has_a_page(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "run"
    shutil.copytree(trained.run, moved)
    (moved / "manifest.json").unlink()
    command = [
        "visualize",
        str(moved),
        "--images",
        str(trained.images / "plain.jpg"),
        "--out",
        str(tmp_path / "p.html"),
    ]
    assert main([*command, "--steps", "1", "--size", "32"]) == 0
    sentence = "The regions and views of this run cannot be drawn here"
    assert sentence in capsys.readouterr().out and sentence in (tmp_path / "p.html").read_text(encoding="utf-8")
