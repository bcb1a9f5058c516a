"""The scaling benchmark starts real processes through the command line."""

from __future__ import annotations

import re

import pytest
from benchmarks import scaling

from plrc.errors import PlrcError

TINY = {"backbone": "resnet18", "size": 32, "batch": 2, "steps": 1, "repeats": 1, "device": "cpu"}


@pytest.mark.slow
def test_efficiency_is_the_rate_of_a_process_over_that_of_the_first_line() -> None:
    found = scaling.run(processes=(1, 2), **TINY)
    one, two = found.rows
    assert (one["processes"], two["processes"]) == (1, 2) and one["efficiency"] == 1
    assert two["efficiency"] == pytest.approx(two["images_per_second"] / 2 / one["images_per_second"])
    assert found.figures == {key: two[key] for key in ("processes", "images_per_second", "efficiency")}
    assert found.settings["workers"] == 0  # on a CPU they would take the cores of other processes


@pytest.mark.slow
def test_a_failed_run_is_reported_with_its_own_message() -> None:
    with pytest.raises(PlrcError, match=r"--devices 1 ended with status 2: model.backbone is 'resnet9'; write one of"):
        scaling.run(processes=(1,), **TINY | {"backbone": "resnet9"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "tpu"}, "run.device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'"),
        ({"processes": ()}, "processes must be one or more numbers >= 1, such as 1 2 4, got []"),
        ({"processes": (1, 0)}, "processes must be one or more numbers >= 1, such as 1 2 4, got [1, 0]"),
    ],
)
def test_bad_input_starts_no_process(change: dict[str, object], message: str) -> None:
    with pytest.raises(PlrcError, match=re.escape(message)):
        scaling.run(**TINY | change)
