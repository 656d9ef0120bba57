"""unshared.jax gives the bits of every other door, and the numbers of jax.lax.

Against the NumPy door: bits, on any data. Against ``jax.lax.conv_general_dilated_local``: integers,
which are exact in any order of summation, without a tolerance, for values and both gradients.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

import unshared
from arrays import (
    BFLOAT16,
    COMPLEX64,
    COMPLEX128,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    assert_same_bits,
    reals,
)
from cases import CASES, OPERANDS, Case, library

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import unshared.jax as adapter  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")

SMALL = [case for case in CASES if case.work() <= 100_000]


def jaxes(face: str, case: Case, first: Any, second: Any) -> Any:
    """The JAX face for a case."""
    return getattr(adapter, face)(first, second, *case.sizes(face), **case.options)


@pytest.mark.transformation("jit", "supported", note="the bits of every other door")
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_same_bits_as_numpy(face: str, case: Case, rng: np.random.Generator) -> None:
    for dtype in (FLOAT32, COMPLEX64):
        operands = [reals(rng, case.shape(seat), dtype) for seat in OPERANDS[face]]
        got = jax.jit(functools.partial(jaxes, face, case))(*operands)
        assert_same_bits(np.asarray(got), library(face, case, *operands), dtype)


@pytest.mark.transformation("every dtype", "supported")
@pytest.mark.parametrize("case", SMALL[1:40:5], ids=str)
def test_same_bits_in_every_dtype(
    face: str, dtype: np.dtype, case: Case, rng: np.random.Generator
) -> None:
    for kind in ("wide", "tiny"):  # XLA's runtime flushes subnormals; the library does not
        operands = [reals(rng, case.shape(seat), dtype, kind) for seat in OPERANDS[face]]
        with np.errstate(over="ignore"):
            got = np.asarray(jaxes(face, case, *operands))
        assert_same_bits(got, library(face, case, *operands), kind)


def permuted(rng: np.random.Generator, letters: str) -> str:
    return "".join(rng.permutation(list(letters)))


def random_problem(rng: np.random.Generator) -> dict[str, Any]:
    """Arguments of conv_general_dilated_local, in any order of axes, with at least one window."""
    n = int(rng.choice([1, 2, 2, 2, 3]))
    letters = "DHW"[-n:]
    spec = [permuted(rng, "NC" + letters), permuted(rng, "OI" + letters), ""]
    spec[2] = permuted(rng, "NC" + letters)
    if rng.random() < 0.3:
        spec = ["N" + letters + "C", letters + "IO", "N" + letters + "C"]
    window = {c: int(rng.integers(1, 4)) for c in letters}
    size = {c: int(rng.integers(window[c], 8)) for c in letters}
    in_rhs = [c for c in spec[1] if c in letters]  # options go by this order
    options: dict[str, Any] = {
        "window_strides": tuple(int(v) for v in rng.integers(1, 4, n)),
        "rhs_dilation": tuple(int(v) for v in rng.choice([1, 1, 2], n)),
        "filter_shape": tuple(window[c] for c in in_rhs),
        "dimension_numbers": tuple(spec),
    }
    kind = rng.choice(["VALID", "SAME", "SAME_LOWER", "pairs", "dilated"])
    if kind in ("pairs", "dilated"):
        options["padding"] = tuple((int(a), int(b)) for a, b in rng.integers(0, 4, (n, 2)))
    else:
        options["padding"] = str(kind)
    if kind == "dilated":
        options["lhs_dilation"] = tuple(int(v) for v in rng.integers(1, 4, n))
    channels, features, batch = (int(v) for v in rng.integers(1, 6, 3))
    extents = {"N": batch, "C": channels, **size}
    lhs_shape = tuple(extents[c] for c in spec[0])
    kernel = {"I": channels, "O": features, **window}
    try:
        y = jax.eval_shape(
            functools.partial(
                jax.lax.conv_general_dilated,
                **{k: v for k, v in options.items() if k != "filter_shape"},
            ),
            jax.ShapeDtypeStruct(lhs_shape, FLOAT32),
            jax.ShapeDtypeStruct(tuple(kernel[c] for c in spec[1]), FLOAT32),
        ).shape
    except ValueError:
        return random_problem(rng)
    if 0 in y or math.prod(y) > 2000:
        return random_problem(rng)
    out = dict(zip(spec[2], y, strict=True))
    weights = {"I": channels * math.prod(window.values()), "O": features} | {
        c: out[c] for c in letters
    }
    return {
        "lhs": lhs_shape,
        "rhs": tuple(weights[c] for c in spec[1]),
        "y": y,
        "options": options,
        "terms": max(channels * math.prod(window.values()), features * 27, batch),
    }


def value_and_gradients(function: Any, options: dict[str, Any], lhs: Any, rhs: Any, y: Any) -> Any:
    def both(lhs: Any, rhs: Any, y: Any) -> Any:
        result, pull = jax.vjp(functools.partial(function, **options), lhs, rhs)
        return result, *pull(y)

    return jax.jit(both)(lhs, rhs, y)


@pytest.mark.transformation("grad", "supported", note="equal to jax.lax on integers, no tolerance")
@pytest.mark.parametrize("part", range(10))
def test_equal_to_jax_lax(part: int, rng: np.random.Generator) -> None:
    """20 random problems each: dimension numbers, strides, dilations, paddings, dtypes."""
    dtypes = (FLOAT32, FLOAT32, FLOAT64, BFLOAT16, FLOAT16, COMPLEX64, COMPLEX128)
    for _ in range(20):
        problem = random_problem(rng)
        dtype = dtypes[rng.integers(len(dtypes))]
        # every sum stays below 2^8, the significand of bfloat16, in which jax.lax may sum
        limit = 2 if dtype.itemsize > 2 else 1
        density = 1.0 if dtype.itemsize > 2 else min(1.0, 200 / problem["terms"])

        def integers(shape: Any, limit=limit, density=density, dtype=dtype) -> Any:
            values = rng.integers(-limit, limit + 1, shape) * (rng.random(shape) < density)
            if dtype.kind == "c":
                values = values + 1j * rng.integers(-limit, limit + 1, shape)
            return jnp.asarray(values.astype(dtype))

        arguments = [integers(problem[name]) for name in ("lhs", "rhs", "y")]
        got, want = (
            value_and_gradients(f, problem["options"], *arguments)
            for f in (adapter.conv_general_dilated_local, jax.lax.conv_general_dilated_local)
        )
        for name, ours, theirs in zip(("y", "lhs", "rhs"), got, want, strict=True):
            label = f"{name} of {problem}, {dtype}"
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, label
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=label)


def test_real_data_within_rounding(rng: np.random.Generator) -> None:
    """float32 sums differ from those of jax.lax by no more than the rounding of each."""
    for _ in range(8):
        problem = random_problem(rng)
        lhs, rhs, y = (rng.standard_normal(problem[name]) for name in ("lhs", "rhs", "y"))
        narrow = [v.astype(np.float32) for v in (lhs, rhs, y)]
        wide = [v.astype(np.float64) for v in narrow]
        options = problem["options"]
        got = value_and_gradients(adapter.conv_general_dilated_local, options, *narrow)
        theirs = jax.lax.conv_general_dilated_local
        want = value_and_gradients(theirs, options, *wide)
        size = value_and_gradients(theirs, options, *map(abs, wide))
        for ours, exact, most in zip(got, want, size, strict=True):
            bound = 2**-24 * (problem["terms"] + 1) * np.asarray(most) + 1e-30
            assert np.all(np.abs(np.asarray(ours) - np.asarray(exact)) <= bound), problem


def test_dimension_numbers_object_with_places_out_of_order(rng: np.random.Generator) -> None:
    """A ConvDimensionNumbers may name the spatial axes of rhs in descending order."""
    dims = jax.lax.ConvDimensionNumbers((0, 3, 2, 1), (3, 2, 1, 0), (0, 3, 2, 1))
    lhs = rng.integers(-3, 4, (2, 8, 6, 3)).astype(np.float32)
    plain = ("NHWC", "HWIO", "NHWC")
    for strides, window in (((1, 2), (3, 2)), ((2, 1), (1, 3))):
        y = jax.eval_shape(
            lambda a, b, s=strides: jax.lax.conv_general_dilated(
                a, b, s[::-1], "VALID", dimension_numbers=plain
            ),
            lhs,
            jax.ShapeDtypeStruct((*window, 3, 4), FLOAT32),
        )
        rhs = rng.integers(-3, 4, (*y.shape[1:3], 3 * math.prod(window), 4)).astype(np.float32)
        got, want = (
            f(lhs, rhs, strides, "VALID", window, dimension_numbers=dims)
            for f in (adapter.conv_general_dilated_local, jax.lax.conv_general_dilated_local)
        )
        np.testing.assert_array_equal(got, want)


def test_what_goes_to_jax_lax(rng: np.random.Generator) -> None:
    """Integers, two dtypes and negative padding give what jax.lax gives."""
    lhs, rhs = rng.integers(-9, 9, (2, 3, 8)), rng.integers(-9, 9, (4, 9, 6))
    for a, b, padding, w in (
        (lhs.astype(np.int32), rhs.astype(np.int32), "VALID", rhs),
        (lhs.astype(np.float32), rhs.astype(np.float64), "VALID", rhs),
        (lhs.astype(np.float32), rhs.astype(np.float32), ((-1, 1),), rhs),
    ):
        assert w.shape[-1] == 6
        try:
            want = jax.lax.conv_general_dilated_local(a, b, (1,), padding, (3,))
        except TypeError:  # as of two dtypes in some versions
            with pytest.raises(TypeError):
                adapter.conv_general_dilated_local(a, b, (1,), padding, (3,))
            continue
        got = adapter.conv_general_dilated_local(a, b, (1,), padding, (3,))
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_nonfinite() -> None:
    """Padding is no part of a sum here; in jax.lax it is multiplied with."""
    lhs, rhs = jnp.ones((1, 1, 3)), jnp.ones((1, 3, 3)).at[0, 0, 0].set(jnp.inf)
    arguments = (lhs, rhs, (1,), ((1, 1),), (3,))
    np.testing.assert_array_equal(adapter.conv_general_dilated_local(*arguments)[0, 0], [2, 3, 2])
    assert np.isnan(jax.lax.conv_general_dilated_local(*arguments)[0, 0, 0])
    seen = adapter.conv_general_dilated_local(lhs.at[0, 0, 0].set(jnp.nan), *arguments[1:])
    np.testing.assert_array_equal(np.isnan(seen[0, 0]), [True, True, False])
    arguments = (lhs.at[0, 0, 0].set(jnp.inf), jnp.ones((1, 3, 1)), (1,), "VALID", (3,))
    assert np.isposinf(adapter.conv_general_dilated_local(*arguments)[0, 0, 0])
    assert np.isnan(jax.lax.conv_general_dilated_local(*arguments)[0, 0, 0])


def test_one_hot_weights_pick_an_element() -> None:
    """Not a patch that went through a rounding convolution: the element itself."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 6)), jnp.float32)
    w = jnp.zeros((4, 1, 2, 3), jnp.float32).at[:, 0, 1, 2].set(1)
    np.testing.assert_array_equal(adapter.forward(x, w)[0, 0], x[0, 1, 2:])


def test_no_copy_in_the_compiled_program() -> None:
    """NHWC with HWIO: nothing but the three calls, which read and write the arrays as they lie."""
    lhs, rhs = jnp.ones((2, 8, 9, 3), jnp.float32), jnp.ones((6, 7, 27, 4), jnp.float32)

    def layer(lhs: Any, rhs: Any) -> Any:
        return adapter.conv_general_dilated_local(
            lhs, rhs, (1, 1), "VALID", (3, 3), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def step(lhs: Any, rhs: Any, y: Any) -> Any:
        result, pull = jax.vjp(layer, lhs, rhs)
        return result, pull(y)

    text = jax.jit(step).lower(lhs, rhs, layer(lhs, rhs)).compile().as_text()
    assert text.count("custom_call_target=") == 3
    for word in (" copy(", " transpose(", " fusion("):
        assert word not in text, text
    assert 'problem = "n2 a3>b4 i8x9 k3x3 x:nia w:oakb y:nob"' in text


def test_empty_problems(face: str) -> None:
    for case in [case for case in CASES if 0 in (case.n, case.a, case.b, *case.i)]:
        operands = [np.ones(case.shape(seat), np.float32) for seat in OPERANDS[face]]
        got = np.asarray(jaxes(face, case, *operands))
        assert_same_bits(got, library(face, case, *operands))


def test_build_info_names_the_ffi() -> None:
    assert unshared.build_info()["xla_ffi"].split(".")[0] == "0"
