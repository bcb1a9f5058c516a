"""The report of what was read from a source."""

from __future__ import annotations

import json

import pytest

from plrc.data.reading import ReadingReport


def filled() -> ReadingReport:
    reading = ReadingReport()
    for number in (4, 1, 3, 2, 2):
        reading.count("dropped", "boxes without width or height", f"a.xml object {number}")
    reading.count("repaired", "numbers written as text", "b\n.json")
    reading.add("train: split train", "train: split train")
    return reading


LINES = (
    "train: split train",
    "numbers written as text, repaired: 1 (b\\n.json)",
    "boxes without width or height, dropped: 4 (a.xml object 1, a.xml object 2, a.xml object 3, ...)",
)


def test_lines_count_each_location_once_and_show_the_first_three() -> None:
    reading = filled()
    assert reading.lines() == LINES
    assert (reading.total("dropped"), reading.total("repaired"), reading.total("clipped")) == (4, 1, 0)
    assert ReadingReport().lines() == ()


def test_values_for_json_keep_counts_and_first_names_and_give_the_lines_back() -> None:
    values = json.loads(json.dumps(filled().to_dict()))
    names = ["a.xml object 1", "a.xml object 2", "a.xml object 3"]
    assert values == {
        "sentences": ["train: split train"],
        "dropped": {"boxes without width or height": {"count": 4, "first": names}},
        "repaired": {"numbers written as text": {"count": 1, "first": ["b\n.json"]}},
    }
    assert ReadingReport.from_dict(values).lines() == LINES
    with pytest.raises(KeyError):
        ReadingReport.from_dict({})


def test_extending_a_report_adds_its_cases() -> None:
    reading = ReadingReport()
    reading.count("dropped", "boxes without width or height", "a.xml object 9")
    reading.extend(filled())
    reading.extend(ReadingReport.from_dict(filled().to_dict()))
    assert reading.total("dropped") == 6  # of the stored report, the location of one case is not known
    assert reading.lines()[0] == LINES[0]
