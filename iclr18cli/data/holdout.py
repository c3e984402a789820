"""A fixed division into training and test examples for data that come without one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TEST_SHARE = 0.2
_SEED = 2018


def stratified(labels: NDArray[np.integer], test_share: float = TEST_SHARE) -> dict[str, NDArray[np.int64]]:
    """Divide examples so that every class has the same share in the test split, up to rounding.

    The division depends on the labels alone, never on a run's seed, so that all runs are measured on the same examples.

    Args:
        labels: (N,) class of each example.
        test_share: Share of the test split, in (0, 1); its size is rounded up as a whole and handed out by largest
            remainder. Each class of two or more examples is in both splits; a class of one is in the training split.

    Returns:
        {"train": indices, "test": indices}, ascending, disjoint, together 0 .. N - 1.
    """
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * test_share
    test_counts = np.floor(exact).astype(int)
    left = int(np.ceil(len(labels) * test_share)) - int(test_counts.sum())
    test_counts[np.argsort(test_counts - exact, kind="stable")[: max(left, 0)]] += 1
    test_counts = np.clip(test_counts, np.minimum(1, counts - 1), counts - 1)
    # RandomState, whose stream numpy promises never to change; Generator carries no such promise.
    random = np.random.RandomState(_SEED)
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, test_counts, strict=True)
    ]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[np.concatenate(chosen) if chosen else []] = True
    return {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}
