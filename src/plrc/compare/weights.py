"""Comparisons as users call them: the runs, and the page of their result."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from plrc.compare.inits import build_comparison
from plrc.compare.result import Comparison
from plrc.compare.run import run_comparison
from plrc.data.workers import end_if_importing_main
from plrc.files import write_text
from plrc.notebook import notebook_output
from plrc.transfer.protocols import TransferConfig
from plrc.visualize.comparison import comparison_page


def compare_weights(
    config: TransferConfig,
    inits: Sequence[str | Path],
    fractions: Sequence[float] = (1.0,),
    shots: Sequence[int] = (),
    seeds: int = 5,
    lrs: Sequence[float] = (),
    processes: int = 1,
) -> Comparison:
    """Fine-tune a network from several initial weights, fairly, and compare the scores: `plrc compare`.

    Each initial weights get the same network, schedule and order of the data, and the same learning rates to choose
    from, on validation images. Nothing is run twice: after a stop the same call continues. `comparison.html` in the
    folder shows the result.

    Args:
        config: What all runs share: `plrc.protocol` with the labelled data and `run.out`, the folder of the comparison.
        inits: Initial weights: run folders, files, "pretrained", or "NAME=RUN,RUN" for several seeds of pre-training.
            Random weights are always compared.
        fractions: Shares of the training images whose labels are used.
        shots: Images of each class whose labels are used, instead of shares.
        seeds: Runs with different seeds, from which intervals are computed.
        lrs: Learning rates to choose from. Empty: half, once and twice that of `config`.
        processes: Runs at the same time.

    Returns:
        The scores and the recommendation. `finished` is False if the comparison was stopped by SIGTERM or Ctrl-C.

    Raises:
        PlrcError: Settings, labels or weights cannot be used, or a run failed.

    Examples:
        >>> import plrc
        >>> config = plrc.protocol("small_detection", "detection")
        >>> config = config.with_values({"data.source": "labelled/", "run.out": "compare"})
        >>> comparison = plrc.compare_weights(config, ["runs/first"], seeds=3)  # doctest: +SKIP
        >>> comparison.scores["first"]["100 % of the labels"]  # doctest: +SKIP
        (31.8, 33.0, 31.1)
    """
    end_if_importing_main()
    base = config.for_comparison()
    rates = tuple(lrs) or tuple(float(f"{config.optim.lr * factor:.6g}") for factor in (0.5, 1.0, 2.0))
    names = [os.fspath(init) for init in inits]
    with notebook_output():
        plan = build_comparison(base, names, tuple(fractions), tuple(shots), seeds, rates, processes)
        result = run_comparison(plan)
    if result.finished:
        write_text(result.path / "comparison.html", comparison_page(dict(result.content)))
    return result
