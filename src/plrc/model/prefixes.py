"""What stands before a backbone's names in a file or in a detector."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

AVERAGED_COPY_WORDS = frozenset({"teacher", "k", "momentum", "ema", "target"})
"""A prefix with one of these words belongs to an averaged (EMA) copy of the network."""


def find_prefix(names: Iterable[str], backbone_names: Iterable[str]) -> str:
    """Find what stands before the backbone's names in a file: the prefix under which it holds the most of them.

    If several hold equally many, the network itself is preferred to an averaged copy of it
    (AVERAGED_COPY_WORDS), then the first in the file.

    Args:
        names: Names in the file.
        backbone_names: Names of the backbone's tensors.

    Returns:
        The prefix with its final dot; empty if there is none.
    """
    counts = _prefix_counts(names, backbone_names)

    def preference(prefix: str) -> tuple[int, bool]:
        return counts[prefix], not is_averaged_copy(prefix)

    return max(counts, key=preference, default="")


def is_averaged_copy(prefix: str) -> bool:
    """Whether a prefix names an averaged copy of the network, such as `ema.` or `model_teacher.`."""
    return not AVERAGED_COPY_WORDS.isdisjoint(re.split("[._]", prefix))


def prefixes(names: Iterable[str], backbone_names: Iterable[str]) -> list[str]:
    """List the prefixes under which a file holds the most of the backbone's names: several if it holds copies of it."""
    counts = _prefix_counts(names, backbone_names)
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.items() if count == most]


def _prefix_counts(names: Iterable[str], backbone_names: Iterable[str]) -> Counter[str]:
    """How many names of the backbone a file holds under each prefix."""
    known_names = set(backbone_names)
    counts = Counter[str]()
    for name in names:
        parts = name.split(".")
        # each way to split the name into a prefix and a name of the backbone
        for start in range(len(parts)):
            inner_name = ".".join(parts[start:])
            if inner_name in known_names:
                counts[name.removesuffix(inner_name)] += 1
    return counts
