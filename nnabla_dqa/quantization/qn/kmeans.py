"""One-dimensional k-means, for the biases of Quantization Networks."""

from __future__ import annotations

import numpy as np

_ITERATIONS = 2000


def boundaries(values: np.ndarray, clusters: int) -> np.ndarray:
    """The midpoints of neighbouring centres of k-means, rising; shape (clusters - 1,), float64.

    Lloyd's algorithm, begun at evenly spaced quantiles, so that it draws nothing and the
    same values always give the same boundaries. It ends where no value changes its
    cluster, or after 2,000 rounds.

    Args:
        values: Finite numbers of any shape.
        clusters: At least 1 and at most the number of distinct values.

    Raises:
        ValueError: There are fewer distinct values than clusters.
    """
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    distinct = 1 + int(np.count_nonzero(np.diff(ordered)))
    if distinct < clusters:
        raise ValueError(f"{distinct} distinct values cannot form {clusters} clusters")
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    at = ((np.arange(clusters) + 0.5) / clusters * ordered.size).astype(int)
    centres = ordered[at]
    if np.unique(centres).size < clusters:
        # Many equal values, such as the zeros behind a ReLU: quantiles of the distinct ones.
        own = np.unique(ordered)
        centres = own[((np.arange(clusters) + 0.5) / clusters * own.size).astype(int)]
    known = None
    for _ in range(_ITERATIONS):
        middle = (centres[1:] + centres[:-1]) / 2
        ends = np.concatenate([[0], np.searchsorted(ordered, middle), [ordered.size]])
        if known is not None and np.array_equal(ends, known):
            break
        known = ends
        counts = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(counts, 1)
        centres = np.where(counts > 0, means, centres)
    result: np.ndarray = (centres[1:] + centres[:-1]) / 2
    return result
