"""The page of a comparison: one file, nothing from outside, all text escaped, the numbers of its data."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from plrc.visualize import charts
from plrc.visualize.comparison import comparison_page

EVIL = """<b>"x.jpg' $\\frac$ {{ 7 * 7 }} & _#000001"""
VOID = {"meta", "link", "br", "path", "use", "rect"}


def difference(a: str, b: str, labels: str, mean: float, verdict: str) -> dict[str, Any]:
    ends = {"low": mean - 1.25, "high": mean + 1.25}
    more = {"better": 0, "worse": 0}.get(verdict)
    return {"labels": labels, "a": a, "b": b, "mean": mean, **ends, "n": 3, "verdict": verdict, "more_seeds": more}


def content(names: tuple[str, ...] = ("random", "mine", EVIL)) -> dict[str, Any]:
    """A comparison.json as `plrc.compare.run` writes it."""
    labels = ["10 % of the labels", "100 % of the labels"]

    def one(i: int, j: int) -> dict[str, Any]:
        mean = 20.0 + 5 * i + 10 * j
        against = difference(names[i], "random", labels[j], 5.0 * i, "better" if i != 2 else "too close to tell")
        return {
            "mean": mean,
            "low": mean - 1,
            "high": mean + 1,
            "n": 3,
            "versus_random": against if i else None,
            "scores": {"AP": [mean - 1, mean, mean + 1], "APs": [None, 3.25, None]},
            "lr": 0.02,
            "edge": "highest" if i == 1 else "",
            "val": {"0.01": 11.5, "0.02": 12.5},
            "diverged": [],
            "curve": [{"step": step, "mean": mean * step / 300, "n": 3} for step in (100, 200, 300)],
        }

    return {
        "task": "detection",
        "protocol": "small_detection",
        "data": f"data/{EVIL}",
        "metric": "AP",
        "seeds": 3,
        "lrs": [0.01, 0.02],
        "done": 24,
        "cells": 24,
        "finished": True,
        "preliminary": True,
        "inits": {name: {"kind": "file", "files": [f"{name}.pt"], "sha256": ["0123abc"]} for name in names},
        "labels": [
            {"name": at, "text": f"{at} ({n} images)", "fraction": 1.0, "shots": 0, "images": [n]}
            for at, n in zip(labels, (12, 120), strict=True)
        ],
        "results": {name: {at: one(i, j) for j, at in enumerate(labels)} for i, name in enumerate(names)},
        "pairs": [difference(name, "random", at, -3.5, "worse") for name in names[1:] for at in labels],
        "settings": {"init": "random", "data": {"source": EVIL}},
        "provenance": {
            "date": "2026-01-02T03:04:05+00:00",
            "commands": [f"plrc compare --init {EVIL}"],
            "hours": 1.25,
            "versions": [{"plrc": "0.1.0", "torch": "2.11"}],
            "notes": [f"3 labels of {EVIL} dropped"],
            "machine": {"system": "Linux", "cpu": "a CPU", "cores": 2, "gpus": []},
        },
        "recommendation": ["With few labels: use mine.", "With all labels: keep yours.", "3 seeds: a first look"],
    }


class Reader(HTMLParser):
    """Checks that tags are closed in order; collects tags, attributes and the text that a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    return comparison_page(content())


def test_the_page_asks_for_nothing_from_outside(page: str) -> None:
    reader = Reader(page)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "img", "iframe", "object", "base", "form"})
    links = [value or "" for _, attributes in reader.tags for name, value in attributes.items() if name in LINKS]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", page))
    assert "@import" not in page
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


LINKS = {"href", "src", "xlink:href", "srcset", "action", "data", "poster"}


def test_names_are_text_and_never_tags_or_templates(page: str) -> None:
    reader = Reader(page)
    assert "<b>&#34;x.jpg" in page.replace("&lt;b&gt;", "<b>") and '<b>"x' not in page
    for where in (f"detection on data/{EVIL}", f"{EVIL}.pt", f"--init {EVIL}", f"3 labels of {EVIL} dropped"):
        assert where in reader.text


def test_the_recommendation_comes_first(page: str) -> None:
    text = Reader(page).text
    order = ["Which initial weights?", "use mine", "keep yours", "a first look", "AP of the test images", "Plots"]
    order += ["Every pair", "Learning rates", "Every score", "Commands, weights, versions"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "preliminary" in text


def test_the_figures_are_those_of_the_comparison(page: str) -> None:
    text = " ".join(Reader(page).text.split())
    assert "■mine 25.0 [24.0, 26.0]▲ better +5.0 [+3.8, +6.2]" in text
    assert "≈ too close to tell +10.0" in text
    assert "▼ worse" in text and "-3.5 [-4.8, -2.2]" in text
    assert "0.02 (highest of the grid)" in text
    assert "APs-3.2-" in text
    assert "100 % of the labels (120 images)" in text


def test_plots_are_drawn_in_the_colors_of_the_page_alone(page: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 3  # score against labels; a curve for each number of labels
    for plot in plots:
        ElementTree.fromstring(plot)
        colors = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", plot))
        assert colors <= {"none", "var(--soft)", "var(--line)", "var(--c0)", "var(--c1)", "var(--c2)"}
        assert {"var(--c0)", "var(--c1)", "var(--c2)"} <= colors
    ids = re.findall(r' id="([^"]*)"', page)
    assert len({*ids}) == len(ids) or all(identical(page, name) for name in ids)
    for name in ("--soft", "--line", *(f"--c{i}" for i in range(7))):
        assert page.count(f"{name}: #") == 2  # light and dark
    assert f"--soft: {charts.LIGHT_TEXT}; --line: {charts.LIGHT_LINE};" in page  # files are drawn in the same colors
    assert " ".join(f"--c{i}: {color};" for i, color in enumerate(charts.LIGHT_SERIES)) in page


def identical(page: str, name: str) -> bool:
    """Whether what stands under an id is the same wherever it stands."""
    return len(set(re.findall(rf'<[a-zA-Z]+ id="{name}"[^>]*>', page))) == 1


def test_the_plot_shows_the_means_where_they_are(page: str) -> None:
    plot = re.findall(r"<svg.*?</svg>", page, re.DOTALL)[1]
    lines = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--c(\d)\)', plot)
    heights = {c: [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", d)] for d, c in lines if d.count("L") == 2}
    assert heights.keys() == {"0", "1", "2"}
    ends = [heights[c][-1] for c in "012"]
    assert ends[0] > ends[1] > ends[2]  # the better, the higher on the page
    assert ends[0] - ends[1] == pytest.approx(ends[1] - ends[2], abs=0.01)
    for ys in heights.values():
        assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.01)


def test_a_comparison_that_has_only_begun_has_a_page() -> None:
    begun = content()
    for by in begun["results"].values():
        for one in by.values():
            nothing = {"mean": None, "low": None, "high": None, "n": 0, "versus_random": None, "lr": None, "curve": []}
            one.update(nothing, scores={"AP": [None] * 3}, edge="", val={"0.01": None, "0.02": None})
    begun.update(finished=False, done=0, pairs=[])
    reader = Reader(comparison_page(begun))
    assert "0 of 24 runs done" in reader.text
    assert "svg" not in {tag for tag, _ in reader.tags}


def test_more_inits_than_colors_have_a_page() -> None:
    names = ("random", *(f"w{i}" for i in range(9)))
    reader = Reader(comparison_page(content(names)))
    assert all(name in reader.text for name in names)


def test_one_seed_has_no_intervals() -> None:
    one = content()
    for by in one["results"].values():
        for result in by.values():
            result.update(low=None, high=None, n=1)
    assert "25.0 [" not in " ".join(Reader(comparison_page(one)).text.split())


def test_writing(page: str) -> None:
    assert comparison_page(content()) == page  # the same bytes from the same comparison
    assert len(page) < 150_000
