"""The short form of the soak: half a minute of a real training, and that a leak would be found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.soak.soak import MEASURES, verdicts, watch


@pytest.mark.slow
def test_memory_and_handles_of_a_training_do_not_grow(tmp_path: Path) -> None:
    found = watch(tmp_path, minutes=0.3, every=0.25, path=tmp_path / "soak.json", save_every=5)
    assert found["ended"] == "stopped and saved"
    assert set(found["verdicts"]) == set(MEASURES)
    grows = [name for name in MEASURES if found["verdicts"][name]["verdict"] == "grows"]
    assert not {"main_rss_mb", "workers_rss_mb", "main_handles", "workers_handles"} & set(grows), found["verdicts"]
    assert found["images"] > 0 and all(s["workers"] == 2 for s in found["samples"])


def samples(leak_mb: float = 0.0, handles: float = 0.0, slower: float = 0.0) -> list[dict[str, Any]]:
    """An hour as a healthy run gives it, with noise and changing load, and what is put on top by its end."""
    rng, out, cpu, busy, images = np.random.default_rng(0), [], 0.0, 0.0, 0
    for i in range(720):
        share = i / 720
        others = 0.5 + 0.4 * np.sin(i / 60)
        pace = 100 * (1 - 0.3 * others) * (1 - slower * share)
        images, cpu, busy = images + int(5 * pace), cpu + 5.0, busy + 5.0 + 5 * others
        out.append({
            "seconds": 5.0 * (i + 1), "images": images, "main_rss_mb": 1000 + leak_mb * share + rng.normal(0, 10),
            "workers_rss_mb": 1000 + rng.normal(0, 1), "main_handles": 21 + round(handles * share),
            "workers_handles": 64 + int(rng.integers(0, 4)), "workers": 2, "cpu_seconds": cpu,
            "machine_busy_seconds": busy,
        })  # fmt: skip
    return out


def test_an_hour_without_a_leak_is_flat() -> None:
    found = verdicts(samples())
    assert {name: v["verdict"] for name, v in found.items()} == dict.fromkeys(MEASURES, "flat")


@pytest.mark.parametrize(
    ("faults", "measure"),
    [
        ({"leak_mb": 60.0}, "main_rss_mb"),
        ({"handles": 20.0}, "main_handles"),
        ({"slower": 0.3}, "images_per_second"),
        ({"slower": 0.3}, "cpu_seconds_per_image"),
    ],
)
def test_a_leak_or_a_slowdown_is_found(faults: dict[str, float], measure: str) -> None:
    found = verdicts(samples(**faults))
    assert found[measure]["verdict"] == "grows"
    assert found["workers_rss_mb"]["verdict"] == "flat"
