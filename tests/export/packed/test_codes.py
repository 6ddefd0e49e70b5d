"""Codes in float32 numbers: what is packed comes out of NNabla's functions bit for bit."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

from nnabla_dqa.export.packed.codes import Form, _quotients, _whole_numbers, pack, unpack

LEVELS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 15, 16, 32, 100, 127, 255, 256, 2**16)


@pytest.mark.parametrize(
    ("levels", "base", "digits", "held"),
    [(2, 2, 1, 31), (3, 3, 1, 19), (4, 4, 1, 15), (8, 2, 3, 31), (16, 4, 2, 15), (256, 4, 4, 15)],
)
def test_forms(levels, base, digits, held):
    form = Form.of(levels)
    assert (form.base, form.digits, form.low + form.high) == (base, digits, held)
    assert form.base**form.digits >= levels
    # At most ten percent above the width, before deflating.
    assert 32 * digits / held < 1.1 * np.log2(levels)


def test_a_form_whose_digits_are_codes():
    assert Form.all_of(16) == (Form(4, 2), Form(16, 1))
    assert Form.all_of(7) == (Form(2, 3), Form(8, 1), Form(7, 1))
    assert Form.all_of(100) == (Form(2, 7), Form(100, 1))
    for levels in (1, 2, 3, 4, 128, 256):
        assert Form.all_of(levels) == (Form.of(levels),)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("count", [1, 14, 15, 19, 31, 1000])
def test_there_and_back(levels, count):
    for form in Form.all_of(levels):
        there_and_back(form, levels, count)


def there_and_back(form, levels, count):
    codes = np.random.RandomState(count).randint(0, levels, count)
    codes[: min(count, 3)] = levels - 1
    packed = pack(codes, form)
    assert packed.dtype == np.float32
    assert packed.shape == (form.numbers(count),)
    found = unpack(nn.Variable.from_numpy_array(packed), form, count)
    found.forward()
    np.testing.assert_array_equal(found.d, codes)


@pytest.mark.parametrize("base", [2, 3, 4, 5, 6, 7, 8, 10, 15, 16, 32, 64, 100, 127])
def test_all_exponents_and_signs(base):
    """With the least and the largest mantissas; nothing is subnormal, infinite or NaN."""
    form = Form(base, 1)
    high = np.arange(base**form.high)
    lows = [0, 1, 2**23 - 1, 2**23, base**form.low - 1, 2**22 + 1]
    low, high = (a.ravel() for a in np.meshgrid([n for n in lows if n < base**form.low], high))
    digits = [low // base**i % base for i in range(form.low)]
    digits += [high // base**i % base for i in range(form.high)]
    packed = pack(np.concatenate(digits), form)
    assert np.isfinite(packed).all()
    assert np.abs(packed).min() >= 2.0**-63
    assert (packed < 0).any() == form.is_signed
    found = _whole_numbers(nn.Variable.from_numpy_array(packed), form)
    F.sink(*found).forward()
    np.testing.assert_array_equal(found[0].d, low)
    np.testing.assert_array_equal(found[1].d, high)


def exact_quotients(base, digits):
    numbers = np.arange(base**digits)
    x = nn.Variable.from_numpy_array(numbers.astype(np.float32))
    np.testing.assert_array_equal(x.d, numbers)
    found = _quotients(x, base, digits)[1]
    found.forward()
    np.testing.assert_array_equal(found.d, numbers // base)


@pytest.mark.parametrize("digits", [14, 15])
def test_division_by_three_is_exact(digits):
    """Of all numbers that occur, those that are corrected and those that are not."""
    exact_quotients(3, digits)


@pytest.mark.slow
@pytest.mark.parametrize("base", [5, 6, 7, 9, 10, 11, 13, 15, 25, 60, 100, 127])
def test_every_division_is_exact(base):
    """Of all numbers that occur; a correction is left out only where none is needed."""
    exact_quotients(base, Form(base, 1).low)
    exact_quotients(base, Form(base, 1).low - 1)
