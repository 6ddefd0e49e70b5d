"""SAWB from 4 bits on: the error of the searched clip against a fine grid search."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa import SAWB

RNG = np.random.RandomState


def families(size: int, seed: int) -> dict[str, np.ndarray]:
    """Weights as they are at the start of training and once it has clustered them."""
    r = RNG(seed)
    sign = np.sign(r.randn(size))
    four = r.choice([-1, -1 / 3, 1 / 3, 1], size)
    three = r.randint(-1, 2, size)
    return {
        "normal": r.randn(size),
        "Laplace": r.laplace(size=size),
        "uniform": r.rand(size) * 2 - 1,
        "Student-t": r.standard_t(3, size),
        "mixed": np.where(r.rand(size) < 0.05, 3, 0.3) * r.randn(size),
        "outlier": np.append(r.randn(size - 1) * 0.1, 5.0),
        "two clusters 0.05": sign + r.randn(size) * 0.05,
        "two clusters 0.15": sign + r.randn(size) * 0.15,
        "three clusters": three + r.randn(size) * 0.05,
        "four clusters 0.01": four + r.randn(size) * 0.01,
        "four clusters 0.03": four + r.randn(size) * 0.03,
        "four clusters 0.1": four + r.randn(size) * 0.1,
        "four clusters 0.2": four + r.randn(size) * 0.2,
    }


def error(w: np.ndarray, clip: float, bits: int) -> float:
    top = 2**bits - 1
    step = 2 * clip / top
    q = -clip + step * np.clip(np.rint((w + clip) / step), 0, top)
    return float(((q - w) ** 2).mean())


def least_error(w: np.ndarray, bits: int) -> float:
    """Of 200 clips over the whole range and 40 around the best of them."""
    peak, rms = np.abs(w).max(), np.sqrt((w**2).mean())
    clips = np.geomspace(min(0.3 * rms, peak), peak, 200)
    errors = [error(w, c, bits) for c in clips]
    i = int(np.argmin(errors))
    fine = np.linspace(clips[max(i - 1, 0)], clips[min(i + 1, 199)], 40)
    return min(*errors, *(error(w, c, bits) for c in fine))


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize(("size", "seed"), [(300, 0), (5000, 1), (9216, 2), (36864, 3)])
def test_error_is_within_a_tenth_of_the_best(bits, size, seed):
    for name, w in families(size, seed).items():
        encoded = SAWB(bits).encode(w)
        actual = float(((encoded.decode() - w) ** 2).mean())
        assert actual <= 1.1 * least_error(w, bits) + 1e-12, name


def test_error_per_channel_is_near_the_best_of_each_channel():
    w = np.stack(list(families(4608, 5).values())).astype(np.float32)
    q = SAWB(4, channel_axis=0).quantize(w)
    for name, row, quantized in zip(families(10, 0), w, q):
        assert ((quantized - row) ** 2).mean() <= 1.1 * least_error(row, 4), name


def test_closed_form_would_collapse_where_the_search_does_not():
    """IBM's 8-bit coefficients (31.76, -35.04) on two clusters give a negative clip."""
    w = families(9216, 0)["two clusters 0.05"]
    assert 31.76 * np.sqrt((w**2).mean()) - 35.04 * np.abs(w).mean() < 0
    assert ((SAWB(8).quantize(w) - w) ** 2).mean() < 1e-4


def test_clip_does_not_depend_on_the_scale_of_the_weights():
    w = RNG(0).randn(5000).astype(np.float32)
    for bits in (2, 3, 4, 8):
        codes = SAWB(bits).encode(w).codes
        for scale in (2.0**-60, 2.0**60):
            np.testing.assert_array_equal(SAWB(bits).encode(w * np.float32(scale)).codes, codes)
