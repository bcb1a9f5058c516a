"""Layer 5: what pre-trained features are worth to a task. May import layers 0 to 4; no sibling package."""

from plrc.transfer.probe import Probe, ProbeResult, evaluate, extract, fit_probe, grouping_auc, probe

__all__ = ["Probe", "ProbeResult", "evaluate", "extract", "fit_probe", "grouping_auc", "probe"]
