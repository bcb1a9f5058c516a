"""Comparisons: which runs are executed, what comparison.json holds, stops, and what is refused."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.compare.simulation import BEST_LR, OWN_LINE, compared, ran, simulated
from tests.killed import kill_at_first_file
from tests.without_locks import needs_filter

from plrc.compare import run as compare
from plrc.compare.inits import build_comparison, fingerprint
from plrc.compare.plan import ComparisonPlan
from plrc.compare.run import run_comparison
from plrc.compare.runs import ComparisonRuns
from plrc.compare.summary import table
from plrc.errors import DataError, RunError, WeightsError
from plrc.progress import OnProgress
from plrc.transfer.finetune import transfer
from plrc.transfer.presets import protocol
from plrc.transfer.protocols import TransferConfig


def test_the_whole_content(build: Callable[..., ComparisonPlan], tmp_path: Path) -> None:
    content = compared(build(seeds=3))
    assert content == json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (content["finished"], content["preliminary"], content["cells"], content["done"]) == (True, True, 30, 30)
    assert [at["text"] for at in content["labels"]] == [
        "10 % of the labels (10 images)",
        "100 % of the labels (100 images)",
    ]
    good = content["results"]["good"]["10 % of the labels"]
    assert (good["lr"], good["edge"], good["n"], len(good["scores"]["AP50"])) == (0.04, "highest", 3, 3)
    assert good["val"].keys() == {"0.01", "0.02", "0.04"}
    assert good["scores"]["APs"] == [None, None, None]
    assert good["mean"] == pytest.approx(sum(good["scores"]["AP"]) / 3)
    assert [point["step"] for point in good["curve"]] == [10, 20]
    assert good["curve"][1]["mean"] == pytest.approx(good["mean"])
    assert content["results"]["bad"]["10 % of the labels"]["edge"] == ""
    assert {pair["verdict"] for pair in content["pairs"] if pair["a"] == "good"} == {"better"}
    assert good["versus_random"]["mean"] == pytest.approx(5, abs=0.5)  # pairing removes the luck of the seed
    assert content["recommendation"][0].startswith("With 10 % of the labels (10 images): keep good. good has AP 26")
    assert any("edge of the grid for random with" in line for line in content["recommendation"])
    assert content["provenance"]["hours"] == pytest.approx(30 * 36 / 3600)
    assert content["provenance"]["machine"]["cores"] >= 1


def test_every_init_gets_its_own_rate_and_only_that_is_used_for_further_seeds(
    build: Callable[..., ComparisonPlan],
) -> None:
    comparison = build(seeds=3)
    compared(comparison)
    rows = [line.split()[1:] for line in ran(comparison.out)]
    assert len(rows) == 30
    for init in comparison.inits:
        mine = [row[1:] for row in rows if Path(row[0]).stem == init]
        for fraction in ("0.1", "1.0"):
            lrs = {seed: sorted(lr for f, lr, s in mine if f == fraction and s == seed) for seed in "012"}
            assert lrs == {"0": ["0.01", "0.02", "0.04"], "1": [str(BEST_LR[init])], "2": [str(BEST_LR[init])]}


def test_a_second_start_runs_only_what_is_new(build: Callable[..., ComparisonPlan]) -> None:
    first = build()
    compared(first)
    before = ran(first.out)
    compared(first)
    assert ran(first.out) == before
    group = {**first.inits, "more": (first.inits["good"][0].replace("good", "good0"),)}
    compared(build(seeds=3, fractions=(1.0, 0.1, 0.5), inits=group, lrs=(0.005, 0.01, 0.02, 0.04)))
    after = ran(first.out)
    assert after[: len(before)] == before
    assert len(after) == len(set(after))


def test_a_group_of_runs_is_taken_in_turn(build: Callable[..., ComparisonPlan], tmp_path: Path) -> None:
    runs = (f"{tmp_path}/good0.pt", f"{tmp_path}/good1.pt")
    comparison = build(inits={"random": ("random",), "mine": runs}, seeds=5, fractions=(1.0,), lrs=(0.02,))
    content = compared(comparison)
    assert content["inits"]["mine"]["sha256"] == [fingerprint(run) for run in runs]
    of_seed = {line.split()[-1]: line.split()[1] for line in ran(comparison.out) if "good" in line}
    assert of_seed == {"0": runs[0], "1": runs[1], "2": runs[0], "3": runs[1], "4": runs[0]}


def test_runs_are_named_by_content(build: Callable[..., ComparisonPlan], tmp_path: Path) -> None:
    def name(comparison: ComparisonPlan, init: str = "good", lr: float = 0.02, seed: int = 0) -> str:
        return ComparisonRuns(comparison).run(init, "100 % of the labels", lr, seed).folder.name

    plain = build()
    (tmp_path / "copy.pt").write_bytes((tmp_path / "good.pt").read_bytes())
    copied = build(inits=plain.inits | {"good": (f"{tmp_path}/copy.pt",)})
    how = build(base=plain.base.with_values({"run.log_every_steps": 7, "run.threads": 3}), processes=2)
    assert name(plain) == name(copied) == name(how)
    what = build(base=plain.base.with_values({"input.flip_prob": 0.25}))
    others = [
        name(what),
        name(build(digest="of other labels")),
        name(plain, "bad"),
        name(plain, "random"),
        name(plain, lr=0.04),
        name(plain, seed=1),
    ]
    assert len({name(plain), *others}) == 7
    (tmp_path / "good.pt").write_bytes(b"other weights")
    assert name(plain) != name(copied)


def test_weights_that_change_meanwhile_are_refused(build: Callable[..., ComparisonPlan], tmp_path: Path) -> None:
    def spoiling(config: TransferConfig, on_progress: OnProgress) -> bool:
        (tmp_path / "bad.pt").write_bytes(b"trained further")
        return simulated(config, on_progress)

    with pytest.raises(WeightsError, match=r"bad\.pt has changed since this comparison was started"):
        compared(build(), spoiling)


def test_a_stop_between_runs_and_how_it_continues(
    build: Callable[..., ComparisonPlan], log: pytest.LogCaptureFixture
) -> None:
    comparison = build()

    def interrupted(config: TransferConfig, on_progress: OnProgress) -> bool:
        simulated(config, on_progress)
        if len(ran(comparison.out)) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    stopped = run_comparison(comparison, interrupted)
    assert not stopped.finished and repr(stopped).startswith("not finished: 5 of 24 runs are done\n")
    assert log.messages[0] == f"24 runs, 0 of them done; each is logged in {comparison.out}/cells/*/log.txt"
    assert log.messages[1].startswith("[1/24] random, 10 % of the labels, lr 0.01, seed 0: AP ")
    assert log.messages[-1] == "stopped: 5 of 24 runs are done; repeat the command to continue"
    assert OWN_LINE not in log.messages
    partial = json.loads((comparison.out / "comparison.json").read_text())
    assert (partial["done"], partial["finished"], partial["preliminary"]) == (5, False, True)
    assert partial["results"]["random"]["10 % of the labels"]["n"] == 1
    assert partial["results"]["bad"]["100 % of the labels"]["mean"] is None
    assert table(partial).count("-") > 0
    assert compared(comparison)["finished"]
    assert len(ran(comparison.out)) == len(set(ran(comparison.out))) == 24


def test_the_result_as_python_users_see_it(build: Callable[..., ComparisonPlan]) -> None:
    result = run_comparison(build(), simulated)
    stored = json.loads((result.path / "comparison.json").read_text())
    assert repr(result) == table(stored) and result.recommendation == tuple(stored["recommendation"])
    assert (result.metric, result.finished, list(result.scores)) == ("AP", True, ["random", "good", "bad"])
    scores = result.scores["good"]["10 % of the labels"]
    assert scores == tuple(stored["results"]["good"]["10 % of the labels"]["scores"]["AP"]) and len(scores) == 2


def test_a_run_that_was_stopped_stops_the_rest(build: Callable[..., ComparisonPlan]) -> None:
    begun = []

    def stopped(config: TransferConfig, on_progress: OnProgress) -> None:
        begun.append(config.run.out)

    assert not run_comparison(build(), stopped).finished
    assert len(begun) == 1


def test_other_settings_are_refused_with_the_difference(build: Callable[..., ComparisonPlan]) -> None:
    plain = build()
    compared(plain)
    with pytest.raises(RunError, match=r"input\.flip_prob: stored 0\.5, now 0\.25"):
        compared(build(base=plain.base.with_values({"input.flip_prob": 0.25})))
    with pytest.raises(RunError, match=r"lrs: stored \[0\.01, 0\.02, 0\.04\], now \[0\.01\]"):
        compared(build(lrs=(0.01,)))
    compared(build(base=plain.base.with_values({"optim.lr": 0.5, "run.log_every_steps": 3})))  # neither changes a run
    (plain.out / "comparison.json").write_text("{")
    with pytest.raises(RunError, match="remove it and repeat the command: no run is lost"):
        compared(plain)


def test_folders_that_cannot_be_used(build: Callable[..., ComparisonPlan], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file; --out must name a folder"):
        compared(build(out=tmp_path / "file"))
    with pytest.raises(RunError, match="is not empty and contains no comparison"):
        compared(build(out=tmp_path))


def test_a_comparison_that_was_killed_while_it_wrote_its_first_file_can_be_started_again(
    build: Callable[..., ComparisonPlan], tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.compare.simulation import compared, simulated_comparison\n"
        "compared(simulated_comparison(Path(sys.argv[1])))"
    )
    kill_at_first_file(code, tmp_path)
    (partial,) = (tmp_path / "out").iterdir()
    assert partial.name.startswith(".comparison.json.")
    assert compared(build())["finished"]


WITHOUT_LOCKS = """
import logging
import sys
from pathlib import Path
from tests.compare.simulation import compared, simulated_comparison
from tests.without_locks import refuse_locks
from plrc.errors import RunError

logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
refuse_locks()
try:
    compared(simulated_comparison(Path(sys.argv[1]), processes=2))
except RunError as error:
    print(error)
compared(simulated_comparison(Path(sys.argv[1])))
"""


@needs_filter
def test_a_file_system_without_locks_needs_a_single_process(
    build: Callable[..., ComparisonPlan], tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WITHOUT_LOCKS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    refused, warning = done.stdout.splitlines()  # a single warning, though each of 24 runs claims its folder
    assert refused == f"the file system of {tmp_path}/out has no locks, which processes need; write --processes 1"
    assert warning.endswith(" has no locks: do not start a second process in this folder")
    assert len(ran(tmp_path / "out")) == 24
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["finished"]


def test_results_that_cannot_be_used(build: Callable[..., ComparisonPlan]) -> None:
    comparison = build()
    run = ComparisonRuns(comparison).run("good", "100 % of the labels", 0.02, 0)
    path = run.folder / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(RunError, match="remove it to repeat this run"):
        ComparisonRuns(comparison).result(run)
    path.write_text(json.dumps({"metrics": {"AP": math.nan}, "val": {"AP": 1.0}, "labels": ""}))
    with pytest.raises(DataError, match="has no AP: the validation or the test images have no label that counts"):
        ComparisonRuns(comparison).result(run)


def test_the_table(build: Callable[..., ComparisonPlan]) -> None:
    content = compared(build(seeds=3))
    lines = table(content).splitlines()
    assert lines[2].split("  ")[-1].strip() == "100 % of the labels (100 images)"
    good = content["results"]["good"]["100 % of the labels"]
    assert lines[4].startswith("good") and lines[4].endswith(f"[{good['low']:.1f}, {good['high']:.1f}] better")
    assert lines[7:] == [f"- {line}" for line in content["recommendation"]]


def test_other_labels_are_other_runs(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """Real runs of four steps, on labels that change before the third start and during the fourth."""
    monkeypatch.setattr(compare, "PROGRESS_SECONDS", 0.0)
    source, out = tmp_path / "labels", tmp_path / "out"
    shutil.copytree(weights.with_name("labels"), source)
    small = {
        "optim.steps": 4,
        "optim.batch_size": 2,
        "run.log_every_steps": 2,
        "run.keep_model": False,
        "model.rois_per_image": 8,
        "run.device": "cpu",
        "data.source": str(source),
        "run.out": str(out),
        "run.threads": 1,
        "input.train_size": (64.0, 64.0),
        "input.test_size": 64.0,
        "input.max_size": 64,
    }
    base = protocol("small_detection", "detection").with_values(small)

    def names_of_finished_runs() -> set[str]:
        return {path.parent.name for path in out.glob("cells/*/result.json")}

    def added_by_a_start(seeds: int = 1, runner: Any = transfer) -> set[str]:
        log.clear()
        before = names_of_finished_runs()
        comparison = build_comparison(base, [str(weights)], (1.0,), (), seeds, (0.01,), 1)
        assert run_comparison(comparison, runner).finished
        return names_of_finished_runs() - before

    def change_a_box() -> None:
        path = source / "train" / "annotations.json"
        table = json.loads(path.read_text())
        table["annotations"][0]["bbox"][2] -= 1
        path.write_text(json.dumps(table))

    first = added_by_a_start()
    assert len(first) == 2
    assert log.messages[0].startswith("2 runs, 0 of them done")
    assert re.fullmatch(r"random, 100 % of the labels, lr 0\.01, seed 0: 2/4  loss .*  left \d:\d\d", log.messages[1])
    assert log.messages[3].startswith("random, 100 % of the labels, lr 0.01, seed 0: validation at step 4: AP ")
    assert added_by_a_start() == set()
    change_a_box()
    second = added_by_a_start()
    assert len(second) == 2 and not first & second

    def changing(config: TransferConfig, on_progress: OnProgress) -> object:
        change_a_box()
        return transfer(config, on_progress)

    with pytest.raises(DataError, match=r"the labels changed before .*result\.json was computed"):
        added_by_a_start(seeds=2, runner=changing)
