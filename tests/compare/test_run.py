"""Comparisons whose scores come from a declared normal model instead of a detector; all else is the real thing.

The model: AP = 20 + gain of the weights + 10 * fraction - 3 * |log2(lr / best lr of the weights)| + a normal draw of
the seed with standard deviation 0.5 that all weights share + one of their own with standard deviation 0.1.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

import plrc
from plrc import rng
from plrc.compare import run as compare
from plrc.compare.cells import Cells, fingerprint
from plrc.compare.run import Comparison, comparison_of, run_comparison, table
from plrc.errors import PlrcError
from plrc.files import write_json
from plrc.model.backbone import build_backbone
from plrc.presets import preset
from plrc.runtime import StopRequest
from plrc.scenes import write_scenes
from plrc.transfer.finetune import transfer
from plrc.transfer.protocols import TransferConfig, protocol

GAIN = {"random": 0.0, "good": 5.0, "bad": -5.0}
BEST_LR = {"random": 0.01, "good": 0.04, "bad": 0.02}


def simulated(config: TransferConfig) -> bool:
    """A cell: result.json from the model above, and a line in OUT/ran.txt."""
    out, init = Path(config.run.out), Path(config.init).stem.rstrip("012")
    shared = rng.generator(config.seed, "probe").normal(0, 0.5)
    own = rng.generator(config.seed, "probe", index=list(GAIN).index(init) + 1).normal(0, 0.1)
    off = 3 * abs(math.log2(config.optim.lr / BEST_LR[init]))
    score = 20 + GAIN[init] + 10 * config.data.fraction - off + shared + own
    metrics = {"AP": score, "AP50": 2 * score, "APs": math.nan}
    content = {
        "metrics": metrics, "val": metrics, "curve": [{"step": 10, "AP": score / 2}, {"step": 20, "AP": score}],
        "diverged": 0, "train_images": round(100 * config.data.fraction), "seconds": 36.0, "notes": ["a note"],
        "labels": "", "versions": {"plrc": "0", "torch": "2"},
    }  # fmt: skip
    write_json(out / "result.json", content)
    with (out.parent.parent / "ran.txt").open("a") as file:
        file.write(f"{out.name} {config.init} {config.data.fraction} {config.optim.lr} {config.seed}\n")
    print("a detector's own words")
    return True


def until_stopped(config: TransferConfig) -> bool | None:
    """A cell that goes on until it is asked to stop."""
    stop = StopRequest()
    (Path(config.run.out) / "begun").touch()
    while not stop.asked:
        time.sleep(0.05)
    stop.restore()
    (Path(config.run.out) / "saved").touch()
    return None


def complaining(config: TransferConfig) -> bool:
    raise PlrcError(f"{config.init} cannot be used")


def ran(out: Path) -> list[str]:
    return (out / "ran.txt").read_text().splitlines()


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Comparison]:
    """build(changes of Comparison) -> random, good and bad weights at two fractions with two seeds."""
    for name in ("good", "bad", "good0", "good1"):
        (tmp_path / f"{name}.pt").write_bytes(name.encode())
    base = protocol("small_detection", "detection").with_values({"data.source": "labels", "evaluations": 2})
    inits = {"random": ("random",), "good": (f"{tmp_path}/good.pt",), "bad": (f"{tmp_path}/bad.pt",)}
    plain = Comparison(base, inits, (1.0, 0.1), (), 2, (0.01, 0.02, 0.04), tmp_path / "out")
    return lambda **changes: replace(plain, **changes)


def compared(comparison: Comparison, run: Any = simulated) -> dict[str, Any]:
    found = run_comparison(comparison, run, say=lambda line: None)
    assert found is not None
    return found


def test_the_whole_content(build: Callable[..., Comparison], tmp_path: Path) -> None:
    found = compared(build(seeds=3))
    assert found == json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (found["finished"], found["preliminary"], found["cells"], found["done"]) == (True, True, 30, 30)
    assert [at["text"] for at in found["labels"]] == [
        "10 % of the labels (10 images)",
        "100 % of the labels (100 images)",
    ]
    good = found["results"]["good"]["10 % of the labels"]
    assert (good["lr"], good["edge"], good["n"], len(good["scores"]["AP50"])) == (0.04, "highest", 3, 3)
    assert good["val"].keys() == {"0.01", "0.02", "0.04"}
    assert good["scores"]["APs"] == [None, None, None]
    assert good["mean"] == pytest.approx(sum(good["scores"]["AP"]) / 3)
    assert [point["step"] for point in good["curve"]] == [10, 20]
    assert good["curve"][1]["mean"] == pytest.approx(good["mean"])
    assert found["results"]["bad"]["10 % of the labels"]["edge"] == ""
    assert {pair["verdict"] for pair in found["pairs"] if pair["a"] == "good"} == {"better"}
    assert good["versus_random"]["mean"] == pytest.approx(5, abs=0.5)  # the seed's own luck is gone
    assert found["recommendation"][0].startswith("With 10 % of the labels (10 images): keep good. good has AP 26")
    assert any("edge of the grid for random with" in line for line in found["recommendation"])
    assert found["provenance"]["hours"] == pytest.approx(30 * 36 / 3600)
    assert found["provenance"]["machine"]["cores"] >= 1


def test_every_init_gets_its_own_rate_and_only_that_one_goes_on(build: Callable[..., Comparison]) -> None:
    comparison = build(seeds=3)
    compared(comparison)
    rows = [line.split()[1:] for line in ran(comparison.out)]
    assert len(rows) == 30
    for init in comparison.inits:
        mine = [row[1:] for row in rows if Path(row[0]).stem == init]
        for fraction in ("0.1", "1.0"):
            lrs = {seed: sorted(lr for f, lr, s in mine if f == fraction and s == seed) for seed in "012"}
            assert lrs == {"0": ["0.01", "0.02", "0.04"], "1": [str(BEST_LR[init])], "2": [str(BEST_LR[init])]}


def test_a_second_start_runs_only_what_is_new(build: Callable[..., Comparison]) -> None:
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


def test_a_group_of_runs_is_taken_in_turn(build: Callable[..., Comparison], tmp_path: Path) -> None:
    runs = (f"{tmp_path}/good0.pt", f"{tmp_path}/good1.pt")
    comparison = build(inits={"random": ("random",), "mine": runs}, seeds=5, fractions=(1.0,), lrs=(0.02,))
    found = compared(comparison)
    assert found["inits"]["mine"]["sha256"] == [fingerprint(run) for run in runs]
    of_seed = {line.split()[-1]: line.split()[1] for line in ran(comparison.out) if "good" in line}
    assert of_seed == {"0": runs[0], "1": runs[1], "2": runs[0], "3": runs[1], "4": runs[0]}


def test_cells_are_named_by_content(build: Callable[..., Comparison], tmp_path: Path) -> None:
    def name(comparison: Comparison, init: str = "good", lr: float = 0.02, seed: int = 0) -> str:
        return Path(Cells.of(comparison).config(init, "100 % of the labels", lr, seed).run.out).name

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


def test_weights_that_change_meanwhile_are_refused(build: Callable[..., Comparison], tmp_path: Path) -> None:
    def spoiling(config: TransferConfig) -> bool:
        (tmp_path / "bad.pt").write_bytes(b"trained further")
        return simulated(config)

    with pytest.raises(PlrcError, match=r"bad\.pt has changed since this comparison was started"):
        compared(build(), spoiling)


def test_a_stop_between_cells_and_the_way_on(build: Callable[..., Comparison]) -> None:
    comparison, said = build(), list[str]()

    def interrupted(config: TransferConfig) -> bool:
        simulated(config)
        if len(ran(comparison.out)) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    assert run_comparison(comparison, interrupted, said.append) is None
    assert said[0].startswith("24 runs, 0 of them done")
    assert said[1].startswith("[1/24] random, 10 % of the labels, lr 0.01, seed 0: AP ")
    assert said[-1] == "stopped: 5 of 24 runs are done; repeat the command to go on"
    partial = json.loads((comparison.out / "comparison.json").read_text())
    assert (partial["done"], partial["finished"], partial["preliminary"]) == (5, False, True)
    assert partial["results"]["random"]["10 % of the labels"]["n"] == 1
    assert partial["results"]["bad"]["100 % of the labels"]["mean"] is None
    assert table(partial).count("-") > 0
    assert compared(comparison)["finished"]
    assert len(ran(comparison.out)) == len(set(ran(comparison.out))) == 24


def test_a_run_that_was_stopped_stops_the_rest(build: Callable[..., Comparison]) -> None:
    begun = []

    def stopped(config: TransferConfig) -> None:
        begun.append(config.run.out)

    assert run_comparison(build(), stopped, say=lambda line: None) is None
    assert len(begun) == 1


def test_a_cell_that_another_command_runs_is_waited_for(build: Callable[..., Comparison], tmp_path: Path) -> None:
    comparison = build(fractions=(1.0,), seeds=1, lrs=(0.02,))
    other = build(fractions=(1.0,), seeds=1, lrs=(0.02,), out=tmp_path / "other")
    compared(other)
    folder = Path(Cells.of(comparison).config("good", "100 % of the labels", 0.02, 0).run.out)
    folder.mkdir(parents=True)
    code = (
        "import fcntl, shutil, sys, time; file = open(sys.argv[1] + '/lock', 'w'); fcntl.flock(file, 2)\n"
        "print(flush=True); time.sleep(1); shutil.copy(sys.argv[2] + '/result.json', sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(folder), str(other.out / "cells" / folder.name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        assert compared(comparison)["finished"]
    assert [line.split()[1] for line in ran(comparison.out)] == ["random", comparison.inits["bad"][0]]


@pytest.mark.slow
def test_several_processes_find_what_one_finds(build: Callable[..., Comparison], tmp_path: Path) -> None:
    alone, shared = build(), build(out=tmp_path / "shared", processes=2)
    one, two = compared(alone), run_comparison(shared, simulated, print)
    assert two is not None
    assert {key: two[key] for key in two if key != "provenance"} == {
        key: one[key] for key in one if key != "provenance"
    }
    assert sorted(ran(shared.out)) == sorted(ran(alone.out))


@pytest.mark.slow
def test_the_complaint_of_a_worker_is_raised(build: Callable[..., Comparison]) -> None:
    with pytest.raises(PlrcError, match="random cannot be used"):
        run_comparison(build(processes=2), complaining, print)


@pytest.mark.slow
def test_ctrl_c_stops_all_workers_and_each_saves(build: Callable[..., Comparison], tmp_path: Path) -> None:
    code = (
        "import pickle, sys; from pathlib import Path; from tests.transfer.test_compare import *\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(run_comparison(pickle.loads(Path(sys.argv[1]).read_bytes()), until_stopped) is not None)\n"
    )
    (tmp_path / "comparison.pickle").write_bytes(pickle.dumps(build(processes=2)))
    (tmp_path / "main.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "comparison.pickle")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        cells = tmp_path / "out" / "cells"
        while len(list(cells.glob("*/begun"))) < 2:
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert said.splitlines()[-1] == "stopped: 0 of 24 runs are done; repeat the command to go on"
    assert len(list(cells.glob("*/saved"))) == 2


def test_other_settings_are_refused_with_the_difference(build: Callable[..., Comparison]) -> None:
    plain = build()
    compared(plain)
    with pytest.raises(PlrcError, match=r"input\.flip: stored 0\.5, now 0\.25"):
        compared(build(base=plain.base.with_values({"input.flip_prob": 0.25})))
    with pytest.raises(PlrcError, match=r"lrs: stored \[0\.01, 0\.02, 0\.04\], now \[0\.01\]"):
        compared(build(lrs=(0.01,)))
    compared(build(base=plain.base.with_values({"optim.lr": 0.5, "run.log_every_steps": 3})))  # neither changes a cell
    (plain.out / "comparison.json").write_text("{")
    with pytest.raises(PlrcError, match="remove it and repeat the command: no run is lost"):
        compared(plain)


def test_folders_that_cannot_be_used(build: Callable[..., Comparison], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlrcError, match="is a file; --out names a folder"):
        compared(build(out=tmp_path / "file"))
    with pytest.raises(PlrcError, match="is not empty and holds no comparison"):
        compared(build(out=tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inits": {"random": ("random",)}}, "nothing to compare random weights with"),
        ({"inits": {"good": ("good.pt",), "random": ("random",)}}, "random weights must be the first"),
        ({"seeds": 0}, "seeds is 0"),
        ({"processes": 0}, "processes is 0"),
        ({"lrs": ()}, "write rising numbers above 0"),
        ({"lrs": (0.0, 0.1)}, "write rising numbers above 0"),
        ({"lrs": (0.2, 0.1)}, "write rising numbers above 0"),
        ({"fractions": ()}, "no number of labels named"),
        ({"fractions": (0.0,)}, "fractions must be above 0"),
        ({"shots": (0,)}, "shots must be 1 or more"),
    ],
)
def test_comparisons_that_cannot_be_made(
    changes: dict[str, Any], message: str, build: Callable[..., Comparison]
) -> None:
    with pytest.raises(PlrcError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("data.fraction", 0.5, "a comparison takes --fractions or --shots"),
        ("data.shots", 3, "a comparison takes --fractions or --shots"),
        ("evaluations", 0, "learning rates are chosen by them"),
    ],
)
def test_bases_that_cannot_be_used(setting: str, value: Any, message: str, build: Callable[..., Comparison]) -> None:
    with pytest.raises(PlrcError, match=message):
        build(base=build().base.with_values({setting: value}))


def test_shots_take_the_place_of_fractions(build: Callable[..., Comparison]) -> None:
    comparison = build(shots=(10, 5))
    assert comparison.labels == {"5 images a class": {"data.shots": 5}, "10 images a class": {"data.shots": 10}}
    assert Cells.of(comparison).config("good", "5 images a class", 0.02, 0).data.shots == 5


def test_results_that_cannot_be_used(build: Callable[..., Comparison]) -> None:
    comparison = build()
    config = Cells.of(comparison).config("good", "100 % of the labels", 0.02, 0)
    path = Path(config.run.out) / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(PlrcError, match="remove it to run this again"):
        Cells.of(comparison).result(config)
    path.write_text(json.dumps({"metrics": {"AP": math.nan}, "val": {"AP": 1.0}, "labels": ""}))
    with pytest.raises(PlrcError, match="has no AP: the validation or the test images have no label that counts"):
        Cells.of(comparison).result(config)


def test_the_table(build: Callable[..., Comparison]) -> None:
    found = compared(build(seeds=3))
    lines = table(found).splitlines()
    assert lines[2].split("  ")[-1].strip() == "100 % of the labels (100 images)"
    good = found["results"]["good"]["100 % of the labels"]
    assert lines[4].startswith("good") and lines[4].endswith(f"[{good['low']:.1f}, {good['high']:.1f}] better")
    assert lines[7:] == [f"- {line}" for line in found["recommendation"]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real file of ResNet-18 weights, and labelled scenes beside it."""
    path = tmp_path_factory.mktemp("weights") / "theirs.safetensors"
    safetensors.torch.save_file(build_backbone("resnet18").net.state_dict(), path)
    write_scenes(path.with_name("labels"), {"train": 4, "val": 2, "test": 2}, seed=0, size=64)
    return path


def asked(weights: Path, *inits: str, **settings: object) -> Comparison:
    base = protocol("coco_fpn_1x", "detection")
    values = {"data.source": str(weights.with_name("labels")), "run.out": "out", "evaluations": 1, **settings}
    return comparison_of(base.with_values(values), inits, (1.0,), (), 3, (0.02, 0.01, 0.02), 1)


def test_what_the_command_line_takes(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights.parent)
    odd = weights.with_name("a=b,c.safetensors")
    odd.hardlink_to(weights)
    found = asked(weights, str(weights), "mine=theirs.safetensors,./theirs.safetensors", "random", odd.name)
    assert found.inits == {
        "random": ("random",), "theirs.safetensors": (str(weights),),
        "mine": ("theirs.safetensors", "./theirs.safetensors"), "a=b,c.safetensors": ("a=b,c.safetensors",),
    }  # fmt: skip
    assert next(iter(found.inits)) == "random"
    assert (found.lrs, found.out, found.seeds) == ((0.01, 0.02), Path("out"), 3)
    assert found.base.model.backbone == "resnet18"  # of all, as the weights say: also of random


@pytest.mark.parametrize(
    ("inits", "settings", "message"),
    [
        (["{w}", "{w}"], {}, r"two of the initial weights are called theirs\.safetensors"),
        (["random={w}"], {}, "two of the initial weights are called random"),
        (["absent"], {}, "absent"),
        (["mine={w},"], {}, "names no weights; write random, torchvision"),
        (["={w}"], {}, "names no weights; write random, torchvision"),
        (["{w}"], {"model.backbone": "resnet50"}, "resnet18.*resnet50|resnet50.*resnet18"),
        (["{w}"], {"run.out": ""}, "write --out FOLDER"),
        (["{w}"], {"data.source": ""}, "write --data FOLDER"),
        ([], {}, "nothing to compare random weights with"),
    ],
)
def test_initial_weights_that_are_refused_before_anything_runs(
    inits: list[str], settings: dict[str, object], message: str, weights: Path
) -> None:
    with pytest.raises(PlrcError, match=message):
        asked(weights, *(init.format(w=weights) for init in inits), **settings)


def test_a_run_that_has_seen_test_images_is_refused(tmp_path: Path) -> None:
    """Two steps of real pre-training on the test images, and two on the training images."""
    write_scenes(tmp_path / "scenes", {"train": 8, "test": 8}, seed=0, size=64)
    runs = {}
    for split in ("test", "train"):
        given = {
            "data.source": str(tmp_path / "scenes" / split / "images"), "data.held_out": 0, "optim.steps": 2,
            "optim.batch_size": 4, "run.out": str(tmp_path / split), "run.workers": 0, "run.device": "cpu",
        }  # fmt: skip
        plrc.pretrain(preset("debug_cpu").with_values(given | {"model.bn_groups": 1}))
        runs[split] = str(tmp_path / split)
    base = protocol("small_detection", "detection").with_values(
        {"data.source": str(tmp_path / "scenes"), "run.out": str(tmp_path / "out")}
    )
    with pytest.raises(PlrcError, match=r"test was pre-trained on 8 of the 8 test images, such as .*--data\.exclude"):
        comparison_of(base, [runs["test"]], (1.0,), (), 1, (0.01,), 1)
    assert list(comparison_of(base, [runs["train"]], (1.0,), (), 1, (0.01,), 1).inits) == ["random", "train"]


def test_other_labels_are_other_runs(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real runs of four steps, on labels that change before the third start and during the fourth."""
    monkeypatch.setattr(compare, "TELL", 0.0)
    source, out = tmp_path / "labels", tmp_path / "out"
    shutil.copytree(weights.with_name("labels"), source)
    small = {
        "optim.steps": 4, "optim.batch_size": 2, "run.log_every_steps": 2, "run.keep_model": False, "model.rois_per_image": 8,
        "run.device": "cpu", "data.source": str(source), "run.out": str(out), "run.threads": 1,
        "input.train_size": (64.0, 64.0), "input.test_size": 64.0, "input.max_size": 64,
    }  # fmt: skip
    base = protocol("small_detection", "detection").with_values(small)

    def ran_by(seeds: int = 1, run: Any = transfer) -> tuple[set[str], list[str]]:
        """The cells that a start adds, and what it says."""
        before, said = {path.parent.name for path in out.glob("cells/*/result.json")}, list[str]()
        again = comparison_of(base, [str(weights)], (1.0,), (), seeds, (0.01,), 1)
        assert run_comparison(again, run, said.append) is not None
        return {path.parent.name for path in out.glob("cells/*/result.json")} - before, said

    def change_a_box() -> None:
        path = source / "train" / "annotations.json"
        table = json.loads(path.read_text())
        table["annotations"][0]["bbox"][2] -= 1
        path.write_text(json.dumps(table))

    first, said = ran_by()
    assert len(first) == 2
    assert said[0].startswith("2 runs, 0 of them done")
    assert re.fullmatch(r"random, 100 % of the labels, lr 0\.01, seed 0: 2/4  loss .*  left \d:\d\d", said[1])
    assert said[3].startswith("random, 100 % of the labels, lr 0.01, seed 0: validation at step 4: AP ")
    assert ran_by()[0] == set()
    change_a_box()
    second, _ = ran_by()
    assert len(second) == 2 and not first & second

    def changing(config: TransferConfig) -> object:
        change_a_box()
        return transfer(config)

    with pytest.raises(PlrcError, match=r"the labels changed before .*result\.json was computed"):
        ran_by(seeds=2, run=changing)
