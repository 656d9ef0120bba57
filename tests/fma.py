"""Fused multiply-add in NumPy, rounded once, for float32 and float64.

`exact` is the definition (rational arithmetic, one rounding); `fma` is the fast array form that the
canonical chain uses. test_oracle.py holds the second against the first. Nothing here trusts
hardware fma.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# significand bits, exponent of the smallest subnormal, largest finite value
_FORMATS = {
    np.dtype(np.float32): (24, -149, float(np.finfo(np.float32).max)),
    np.dtype(np.float64): (53, -1074, float(np.finfo(np.float64).max)),
}


def rounded(value: Fraction, dtype: np.dtype) -> float:
    """The nearest number of `dtype` to a non-zero rational, ties to even, subnormals kept."""
    bits, lowest, largest = _FORMATS[dtype]
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1  # now 2**exponent <= size < 2**(exponent + 1)
    quantum = Fraction(2) ** max(exponent - bits + 1, lowest)
    steps = round(size / quantum)  # Fraction rounds half to even
    near = steps * quantum
    result = math.inf if near > Fraction(largest) else float(near)
    return -result if value < 0 else result


def exact(p: float, q: float, c: float, dtype: np.dtype) -> float:
    """p * q + c by definition: exact in the rationals, then rounded once."""
    if not (math.isfinite(p) and math.isfinite(q) and math.isfinite(c)):
        with np.errstate(all="ignore"):
            if math.isfinite(p) and math.isfinite(q):
                return c  # a finite product, however large, cannot change an infinity or a NaN
            return float(np.float64(p) * np.float64(q) + np.float64(c))
    value = Fraction(p) * Fraction(q) + Fraction(c)
    if value == 0:  # signed zeros follow the sum of the signed zeros; cancellation gives +0
        return p * q + c if p == 0 or q == 0 else 0.0
    return rounded(value, dtype)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    def split(v: Array) -> tuple[Array, Array]:
        t = v * 134217729.0  # 2**27 + 1
        high = t - (t - v)
        return high, v - high

    product = a * b
    ah, al = split(a)
    bh, bl = split(b)
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def _to_odd(s: Array, error: Array) -> Array:
    """Turn a sum rounded to nearest (with its exact error) into the sum rounded to odd."""
    bits = np.ascontiguousarray(s).view(np.int64)
    inexact = (error != 0) & np.isfinite(s) & np.isfinite(error) & (bits & 1 == 0)
    step = np.where((error > 0) == (s > 0), 1, -1)
    return np.where(inexact, bits + step, bits).view(np.float64)


def _fma32(p: Array, q: Array, c: Array) -> Array:
    # 24 x 24 bit products are exact in float64; rounding the sum to odd there makes the second
    # rounding, to float32, the only one that counts.
    product = p.astype(np.float64) * q.astype(np.float64)
    return _to_odd(*_two_sum(product, c.astype(np.float64))).astype(np.float32)


def _fma64(p: Array, q: Array, c: Array) -> Array:
    # Boldo and Melquiond: error-free product, two error-free sums, one sum rounded to odd.
    plain = p * q + c
    uh, ul = _two_product(p, q)
    th, tl = _two_sum(c, ul)
    vh, vl = _two_sum(uh, th)
    result = vh + _to_odd(*_two_sum(tl, vl))
    special = ~(np.isfinite(p) & np.isfinite(q) & np.isfinite(c))
    zero = (p == 0) | (q == 0)
    result = np.where(zero | special, plain, result)
    ap, aq, ac = np.abs(p), np.abs(q), np.abs(c)
    tame = (ap > 2.0**-450) & (ap < 2.0**450) & (aq > 2.0**-450) & (aq < 2.0**450) & (ac < 2.0**900)
    for at in np.argwhere(~(tame | zero | special) | (special & np.isfinite(p) & np.isfinite(q))):
        at = tuple(at)
        result[at] = exact(float(p[at]), float(q[at]), float(c[at]), np.dtype(np.float64))
    return result


def fma(p: Array, q: Array, c: Array) -> Array:
    """p * q + c, rounded once, element by element (broadcasting); all of one dtype."""
    p, q, c = np.broadcast_arrays(p, q, c)
    assert p.dtype == q.dtype == c.dtype and p.dtype in _FORMATS
    with np.errstate(all="ignore"):
        return (_fma32 if p.dtype == np.float32 else _fma64)(p, q, c)
