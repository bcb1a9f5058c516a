"""Groups of images: how they are named, and that a drawn split never parts one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plrc import rng
from plrc.config import DataConfig
from plrc.data.groups import draw_held_out, group_names, require_two_groups
from plrc.data.reading import ReadingReport
from plrc.data.sampler import split_held_out
from plrc.errors import ConfigError
from plrc.transfer.protocols import LabelledConfig

FRAMES = ["a/IMG_1_MOV-0.jpg", "a/IMG_1_MOV-1.jpg", "b/IMG_2_MOV-0.jpg", "b/still.jpg", "other.jpg"]


def groups_of(names: list[str], group: str) -> tuple[list[str], tuple[str, ...]]:
    """The groups, and the lines of the report."""
    reading = ReadingReport()
    return group_names(names, group, reading), reading.lines()


def test_names_of_groups() -> None:
    assert groups_of(FRAMES, "folder") == (["a", "a", "b", "b", ""], ("data.group = folder: 3 groups of 5 images",))
    groups, lines = groups_of(FRAMES, r"(IMG_\d+)_MOV")
    assert groups == ["IMG_1", "IMG_1", "IMG_2", "/b/still.jpg", "/other.jpg"]
    assert lines == (
        r"data.group = (IMG_\d+)_MOV: 4 groups of 5 images",
        "images that data.group does not match, each a group of its own, read: 2 (b/still.jpg, other.jpg)",
    )
    whole_match, _ = groups_of(["scene4_r0_c1.png", "scene4_r1_c0.png", "scene5_r0_c1.png"], r"^scene\d+")
    assert whole_match == ["scene4", "scene4", "scene5"]
    assert groups_of(FRAMES, "") == (FRAMES, ())
    assert groups_of(FRAMES, "jpg$")[1] == ("data.group = jpg$: 1 groups of 5 images",)
    assert groups_of(FRAMES, r"\w+-?\d?\.jpg")[1] == (
        r"data.group = \w+-?\d?\.jpg: 5 groups of 5 images, so no images belong together",
    )


def test_a_group_that_divides_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.group = x\.y matches none of the 5 images, such as a/IMG_1_MOV-0"):
        groups_of(FRAMES, "x.y")
    with pytest.raises(ConfigError, match="puts all 2 images into one group, so none can be held out; write a pattern"):
        require_two_groups(["images", "images"], ["images/1.jpg", "images/2.jpg"], "folder")
    for config in (DataConfig, LabelledConfig):
        with pytest.raises(ConfigError, match=r"data\.group = \(IMG is no regular expression \(missing \)"):
            config(group="(IMG")


@given(st.lists(st.integers(1, 30), min_size=2, max_size=40), st.integers(0, 99), st.randoms())
def test_no_group_is_parted(sizes: list[int], seed: int, random: object) -> None:
    groups = [f"group {i}" for i, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(groups)  # type: ignore[attr-defined]
    wanted = max(1, len(groups) // 5)
    drawn = draw_held_out(groups, wanted, len(groups) // 2, seed)
    held_out = [groups[i] for i in drawn]
    counts = Counter(groups)
    assert all(count == counts[group] for group, count in Counter(held_out).items())
    assert 0 < len(drawn) <= len(groups) // 2
    assert len(drawn) < 2 * wanted or len(set(held_out)) == 1
    train, health = split_held_out(groups, 64, seed)
    assert len(health) <= min(128, len(groups) // 10) and sorted([*train, *health]) == list(range(len(groups)))
    assert not {groups[i] for i in train} & {groups[i] for i in health}


def test_without_groups_the_draw_is_one_of_images() -> None:
    names = [f"{i}.jpg" for i in range(103)]
    order = rng.generator(5, "held_out").permutation(103)
    train, held_out = split_held_out(names, 64, seed=5)
    assert (held_out == np.sort(order[:10])).all() and (train == np.sort(order[10:])).all()
