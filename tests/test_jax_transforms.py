"""Every transformation of JAX, over every face: each line of the table is shown here.

What a transformed face must give is always computed by the NumPy door, one plain call at a time,
and compared by bits, or, where sums over results come in, on integers without a tolerance.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

from arrays import FLOAT64, assert_same_bits, reals
from cases import OPERANDS, RESULT, Case, library, parse

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import unshared.jax as adapter  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")

CASE = parse("n3 a2>b4 g2 i5x4 k2x3 s2x1 p1 d1x1")
LINES = [
    "n3 a2>b4 g2 i5x4 k2x3 s2x1 p1",
    "n2 a3>b2 i7 k3 d2 e2 p1:2",
    "n2 a1>b2 i3x4x3 k2x2x1 s1x2x1",
]
seated = functools.partial(pytest.mark.parametrize, "case", [parse(x) for x in LINES], ids=str)


def jaxes(face: str, case: Case, first: Any, second: Any) -> Any:
    return getattr(adapter, face)(first, second, *case.sizes(face), **case.options)


def operands(face: str, case: Case, rng: np.random.Generator) -> list[np.ndarray]:
    return [reals(rng, case.shape(seat), FLOAT64) for seat in OPERANDS[face]]


def whole(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float64)


@pytest.mark.transformation("check_grads, order 3, both modes", "supported")
@seated()
def test_check_grads(face: str, case: Case, rng: np.random.Generator) -> None:
    check_grads(functools.partial(jaxes, face, case), operands(face, case, rng), order=3)


@pytest.mark.transformation("grad with respect to each operand", "supported")
@seated()
def test_gradient_is_the_face_that_fills_the_seat(
    face: str, case: Case, rng: np.random.Generator
) -> None:
    first, second = operands(face, case, rng)
    cotangent = reals(rng, case.shape(RESULT[face]), FLOAT64)
    _, pull = jax.vjp(functools.partial(jaxes, face, case), first, second)
    given = dict(zip((*OPERANDS[face], RESULT[face]), (first, second, cotangent), strict=True))
    fills = {seat: name for name, seat in RESULT.items()}
    for seat, got in zip(OPERANDS[face], pull(cotangent), strict=True):
        target = fills[seat]
        want = library(target, case, *(given[s] for s in OPERANDS[target]))
        assert_same_bits(np.asarray(got), want, f"{face} by {seat}")


@pytest.mark.transformation("jvp", "supported")
def test_jvp(face: str, rng: np.random.Generator) -> None:
    at, along = operands(face, CASE, rng), operands(face, CASE, rng)
    value, tangent = jax.jvp(functools.partial(jaxes, face, CASE), at, along)
    assert_same_bits(np.asarray(value), library(face, CASE, *at))
    want = library(face, CASE, along[0], at[1]) + library(face, CASE, at[0], along[1])
    assert_same_bits(np.asarray(tangent), want)


@pytest.mark.transformation("linearize", "supported")
def test_linearize(face: str, rng: np.random.Generator) -> None:
    at, along = operands(face, CASE, rng), operands(face, CASE, rng)
    _, tangent = jax.linearize(functools.partial(jaxes, face, CASE), *at)
    want = library(face, CASE, along[0], at[1]) + library(face, CASE, at[0], along[1])
    assert_same_bits(np.asarray(tangent(*along)), want)


@pytest.mark.transformation("linear_transpose", "supported")
def test_linear_transpose(rng: np.random.Generator) -> None:
    x, w = operands("forward", CASE, rng)
    dy = reals(rng, CASE.shape("y"), FLOAT64)
    (dx,) = jax.linear_transpose(lambda x: jaxes("forward", CASE, x, w), x)(dy)
    assert_same_bits(np.asarray(dx), library("grad_input", CASE, dy, w))
    (dw,) = jax.linear_transpose(lambda w: jaxes("forward", CASE, x, w), w)(dy)
    assert_same_bits(np.asarray(dw), library("grad_weight", CASE, x, dy))


@pytest.mark.transformation("grad of grad", "supported")
def test_grad_of_grad(rng: np.random.Generator) -> None:
    x, w = whole(CASE.shape("x"), rng), whole(CASE.shape("w"), rng)

    def loss(x: Any, w: Any) -> Any:  # quadratic in y: the second derivative is not zero
        return (jaxes("forward", CASE, x, w) ** 2).sum() / 2

    v = whole(CASE.shape("w"), rng)
    second = jax.grad(lambda w: jnp.vdot(jax.grad(loss, argnums=1)(x, w), v))(w)
    y = library("forward", CASE, x, v)  # the Hessian in w is that of y * y / 2: constant
    np.testing.assert_array_equal(second, library("grad_weight", CASE, x, y))


@pytest.mark.transformation("hessian, jacfwd, jacrev", "supported")
def test_hessian(rng: np.random.Generator) -> None:
    case = parse("n2 a1>b2 i3 k2")
    x, w = whole(case.shape("x"), rng), whole(case.shape("w"), rng)

    def loss(w: Any) -> Any:
        return (jaxes("forward", case, x, w) ** 2).sum() / 2

    got = np.asarray(jax.hessian(loss)(w)).reshape(w.size, w.size)
    jacobian = np.asarray(jax.jacfwd(lambda w: jaxes("forward", case, x, w))(w))
    np.testing.assert_array_equal(jacobian, jax.jacrev(lambda w: jaxes("forward", case, x, w))(w))
    jacobian = jacobian.reshape(-1, w.size)
    np.testing.assert_array_equal(got, jacobian.T @ jacobian)


AXES = [(0, None), (None, 0), (0, 0), (1, 2), (-1, None), (None, -1)]


@pytest.mark.transformation("vmap over the first operand", "supported", note="joins the batch")
@pytest.mark.transformation("vmap over the second operand", "supported", note="no loop")
@pytest.mark.transformation("vmap over both", "supported", note="no loop: the mapped axis")
@pytest.mark.parametrize("axes", AXES, ids=str)
@seated()
def test_vmap(
    face: str, case: Case, axes: tuple[int | None, int | None], rng: np.random.Generator
) -> None:
    stacks = [np.stack(v) for v in zip(*(operands(face, case, rng) for _ in range(3)), strict=True)]
    moved = [
        s[0] if axis is None else np.moveaxis(s, 0, axis)
        for s, axis in zip(stacks, axes, strict=True)
    ]
    function = jax.vmap(functools.partial(jaxes, face, case), axes)
    each = [
        library(face, case, *(s[0 if axis is None else i] for s, axis in zip(stacks, axes)))  # noqa: B905
        for i in range(3)
    ]
    assert_same_bits(np.asarray(function(*moved)), np.stack(each), f"{face} {axes}")
    assert "scan" not in str(jax.make_jaxpr(function)(*moved))


@pytest.mark.transformation("vmap of vmap", "supported")
@pytest.mark.parametrize("outer", [(0, None), (None, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("inner", [(0, None), (None, 0), (0, 0)], ids=str)
def test_vmap_of_vmap(face: str, outer: Any, inner: Any, rng: np.random.Generator) -> None:
    arrays = []
    for seat, o, i in zip(OPERANDS[face], outer, inner, strict=True):
        lead = (2,) * (o is not None) + (3,) * (i is not None)
        arrays.append(reals(rng, (*lead, *CASE.shape(seat)), FLOAT64))
    function = jax.vmap(jax.vmap(functools.partial(jaxes, face, CASE), inner), outer)
    got = np.asarray(function(*arrays))

    def at(array: np.ndarray, seat: int, p: int, q: int) -> np.ndarray:
        array = array if outer[seat] is None else array[p]
        return array if inner[seat] is None else array[q]

    want = [
        [library(face, CASE, *(at(a, s, p, q) for s, a in enumerate(arrays))) for q in range(3)]
        for p in range(2)
    ]
    assert_same_bits(got, np.array(want), f"{face} {outer} {inner}")


@pytest.mark.transformation("grad of vmap", "supported")
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=str)
def test_grad_of_vmap(face: str, axes: Any, rng: np.random.Generator) -> None:
    """An operand that is not mapped gets the sum over the mapped axis."""
    arrays = [
        whole(((3,) if axis == 0 else ()) + CASE.shape(seat), rng)
        for seat, axis in zip(OPERANDS[face], axes, strict=True)
    ]
    cotangent = whole((3, *CASE.shape(RESULT[face])), rng)
    plain = functools.partial(jaxes, face, CASE)
    _, pull = jax.vjp(jax.vmap(plain, axes), *arrays)
    got = pull(cotangent)
    want = [0.0, 0.0]
    parts: tuple[list, list] = ([], [])
    for i in range(3):
        one = [a if axis is None else a[i] for a, axis in zip(arrays, axes, strict=True)]
        for seat, gradient in enumerate(jax.vjp(plain, *one)[1](cotangent[i])):
            parts[seat].append(np.asarray(gradient))
    for seat in (0, 1):
        want[seat] = sum(parts[seat]) if axes[seat] is None else np.stack(parts[seat])
        np.testing.assert_array_equal(got[seat], want[seat], err_msg=f"{face} {axes} {seat}")
    check_grads(jax.vmap(plain, axes), arrays, order=2, modes=("fwd", "rev"))


@pytest.mark.transformation("vmap of grad (gradients per sample)", "supported")
def test_gradients_per_sample(rng: np.random.Generator) -> None:
    xs, w = whole((4, *CASE.shape("x")), rng), whole(CASE.shape("w"), rng)

    def loss(w: Any, x: Any) -> Any:
        return (jaxes("forward", CASE, x, w) ** 2).sum() / 2

    got = jax.vmap(jax.grad(loss), (None, 0))(w, xs)
    for x, dw in zip(xs, got, strict=True):
        y = library("forward", CASE, x, w)
        np.testing.assert_array_equal(dw, library("grad_weight", CASE, x, y))


@pytest.mark.transformation("scan, while_loop, cond", "supported")
def test_control_flow(rng: np.random.Generator) -> None:
    case = parse("n2 a3>b3 i4x4 k3x3 p1")
    x, ws = reals(rng, case.shape("x"), FLOAT64), reals(rng, (3, *case.shape("w")), FLOAT64)
    want = x
    for w in ws:
        want = library("forward", case, want, w)

    def step(x: Any, w: Any) -> Any:
        return jaxes("forward", case, x, w), None

    def through(x: Any, ws: Any) -> Any:
        return jax.lax.scan(step, x, ws)[0]

    assert_same_bits(np.asarray(through(x, ws)), want)
    looped = jax.lax.fori_loop(0, 3, lambda i, x: jaxes("forward", case, x, jnp.asarray(ws)[i]), x)
    assert_same_bits(np.asarray(looped), want)
    picked = jax.lax.cond(x[0, 0, 0, 0] < 9, lambda x: step(x, ws[0])[0], lambda x: x, x)
    assert_same_bits(np.asarray(picked), library("forward", case, x, ws[0]))
    check_grads(through, (x, ws), order=1)


@pytest.mark.transformation("checkpoint (remat)", "supported")
def test_remat(rng: np.random.Generator) -> None:
    case = parse("n2 a3>b3 i4x4 k3x3 p1")
    x, w = reals(rng, case.shape("x"), FLOAT64), reals(rng, case.shape("w"), FLOAT64)

    def twice(x: Any, w: Any) -> Any:
        return jnp.tanh(jaxes("forward", case, jnp.tanh(jaxes("forward", case, x, w)), w)).sum()

    plain = jax.jit(jax.grad(twice, argnums=(0, 1)))(x, w)
    saved = jax.jit(jax.grad(jax.checkpoint(twice), argnums=(0, 1)))(x, w)
    for a, b in zip(plain, saved, strict=True):
        assert_same_bits(np.asarray(a), np.asarray(b))
    again = str(jax.make_jaxpr(jax.grad(jax.checkpoint(twice), argnums=1))(x, w))
    assert again.count("unshared_forward[") > str(jax.make_jaxpr(twice)(x, w)).count(
        "unshared_forward["
    )


@pytest.mark.transformation("custom_vjp and custom_jvp around it", "supported")
def test_inside_custom_rules(rng: np.random.Generator) -> None:
    x, w = operands("forward", CASE, rng)

    @jax.custom_vjp
    def layer(x: Any, w: Any) -> Any:
        return jaxes("forward", CASE, x, w)

    def back(saved: Any, dy: Any) -> Any:
        x, w = saved
        return jaxes("grad_input", CASE, dy, w), jaxes("grad_weight", CASE, x, dy)

    layer.defvjp(lambda x, w: (layer(x, w), (x, w)), back)
    got = jax.grad(lambda w: layer(x, w).sum())(w)
    want = library("grad_weight", CASE, x, np.ones(CASE.shape("y")))
    assert_same_bits(np.asarray(got), want)


@pytest.mark.transformation("donation", "supported", note="the memory of an operand is reused")
def test_donation(rng: np.random.Generator) -> None:
    case = parse("n2 a3>b3 i4x4 k3x3 p1")
    x, w = reals(rng, case.shape("x"), FLOAT64), reals(rng, case.shape("w"), FLOAT64)
    given = jnp.array(w)

    def update(w: Any, x: Any) -> Any:
        dy = jaxes("forward", case, x, w)
        return w - 0.5 * jaxes("grad_weight", case, x, dy)

    got = jax.jit(update, donate_argnums=0)(given, x)
    dy = library("forward", case, x, w)
    assert_same_bits(np.asarray(got), w - 0.5 * library("grad_weight", case, x, dy))
    assert given.is_deleted()
    text = jax.jit(update, donate_argnums=0).lower(w, x).compile().as_text()
    assert "input_output_alias={ {}: (0, {}" in text


@pytest.mark.transformation("complex differentiation", "supported", note="as JAX: no conjugation")
def test_holomorphic(rng: np.random.Generator) -> None:
    x, w = (reals(rng, CASE.shape(seat), np.dtype("complex128")) for seat in "xw")
    dy = reals(rng, CASE.shape("y"), np.dtype("complex128"))
    _, pull = jax.vjp(lambda x: jaxes("forward", CASE, x, w), x)
    assert_same_bits(np.asarray(pull(dy)[0]), library("grad_input", CASE, dy, w))
    got = jax.grad(lambda w: jaxes("forward", CASE, x, w).sum(), holomorphic=True)(w)
    ones = np.ones(CASE.shape("y"), np.complex128)
    assert_same_bits(np.asarray(got), library("grad_weight", CASE, x, ones))
    check_grads(lambda x, w: jnp.abs(jaxes("forward", CASE, x, w)) ** 2, (x, w), order=2)


@pytest.mark.transformation("eager calls", "supported", note="compiled once per geometry")
def test_eager_call_is_compiled_once(
    rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    case = parse("n3 a2>b5 i5x4 k2x3")
    x, w = (jnp.asarray(v) for v in operands("forward", case, rng))
    for compiled in (True, False):
        caplog.clear()
        with jax.log_compiles():
            got = jaxes("forward", case, x, w)
        assert ("unshared_forward" in caplog.text or "Compiling" in caplog.text) == compiled
        assert_same_bits(np.asarray(got), library("forward", case, np.asarray(x), np.asarray(w)))


@pytest.mark.transformation("disable_jit, debug_nans", "supported")
def test_debugging_modes(rng: np.random.Generator) -> None:
    x, w = operands("forward", CASE, rng)
    with jax.disable_jit():
        got = jax.jit(functools.partial(jaxes, "forward", CASE))(x, w)
    assert_same_bits(np.asarray(got), library("forward", CASE, x, w))
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        jaxes("forward", CASE, np.full_like(x, np.nan), w)


def test_sizes_of_zero(face: str) -> None:
    """A vmap over nothing, and gradients of an empty batch."""
    arrays = [np.ones((0, *CASE.shape(seat))) for seat in OPERANDS[face]]
    assert jax.vmap(functools.partial(jaxes, face, CASE))(*arrays).shape[0] == 0
    first = jax.vmap(functools.partial(jaxes, face, CASE), (0, None))(
        arrays[0], np.ones(CASE.shape(OPERANDS[face][1]))
    )
    assert first.shape == (0, *CASE.shape(RESULT[face]))
    empty = CASE.with_(n=0)
    dw = jax.grad(lambda w: jaxes("forward", empty, np.ones(empty.shape("x")), w).sum())(
        np.ones(empty.shape("w"))
    )
    assert math.prod(dw.shape) > 0 and not np.any(dw)
