"""What cannot be done says so: while tracing, and in the words of the library's core."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import unshared
from unshared import _core

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import unshared.jax as adapter  # noqa: E402

X, W = np.ones((2, 3, 6), np.float32), np.ones((4, 5, 3, 3), np.float32)


@pytest.mark.transformation("wrong shapes and options", "refused", note="while tracing")
@pytest.mark.parametrize(
    ("arrays", "options", "argument"),
    [
        ((X, W[:3]), {}, "w"),
        ((X, W[0]), {}, "w"),
        ((X[0], W), {}, "x"),
        ((X[:, :2], W), {}, "w"),
        ((X, W), {"stride": 0}, "stride"),
        ((X, W), {"padding": -1}, "padding"),
        ((X, W), {"dilation": (1, 1)}, "dilation"),
        ((X, W), {"groups": 2}, "groups"),
    ],
    ids=str,
)
def test_values(arrays: Any, options: dict[str, Any], argument: str) -> None:
    """The error of the NumPy door, word for word, before anything runs."""
    with pytest.raises(unshared.ArgumentValueError) as theirs:
        unshared.forward(*arrays, **options)
    for call in (adapter.forward, jax.jit(lambda x, w: adapter.forward(x, w, **options))):
        more = options if call is adapter.forward else {}
        with pytest.raises(unshared.ArgumentValueError) as raised:
            call(*arrays, **more)
        assert str(raised.value) == str(theirs.value)
        assert raised.value.argument == argument
    with pytest.raises(ValueError):
        jax.eval_shape(lambda x, w: adapter.forward(x, w, **options), *arrays)


def test_gradients_say_which_size_is_wrong() -> None:
    dy = np.ones((2, 5, 4), np.float32)
    with pytest.raises(unshared.ArgumentValueError, match="input_size"):
        adapter.grad_input(dy, W, 9)
    with pytest.raises(unshared.ArgumentValueError, match="grad_weight"):
        adapter.grad_weight(X, dy, 2)
    with pytest.raises(unshared.ArgumentTypeError, match="kernel_size"):
        adapter.grad_weight(X, dy, 3.0)


@pytest.mark.transformation("dtypes that are not supported", "refused")
@pytest.mark.parametrize("dtype", ["int32", "bool", "float8_e4m3fn"])
def test_dtypes(dtype: str) -> None:
    with pytest.raises(unshared.ArgumentTypeError, match=dtype):
        adapter.forward(jnp.ones((2, 3, 6), dtype), jnp.ones((4, 5, 3, 3), dtype))


def test_two_dtypes() -> None:
    with pytest.raises(unshared.ArgumentTypeError, match="as 'x' has it"):
        adapter.forward(jnp.ones((2, 3, 6)), jnp.ones((4, 5, 3, 3), jnp.bfloat16))


def test_options_are_static() -> None:
    with pytest.raises(unshared.ArgumentTypeError, match="stride"):
        jax.jit(lambda x, w, s: adapter.forward(x, w, stride=s))(X, W, 1)


@pytest.mark.parametrize(
    ("rhs", "window", "padding"),
    [
        ((5, 9, 5), (3,), "VALID"),  # places
        ((5, 10, 4), (3,), "VALID"),  # not a multiple of the window
        ((5, 6, 4), (3,), "VALID"),  # channels
        ((5, 9, 4), (3,), "FULL"),
        ((5, 21, 0), (7,), "VALID"),  # no window fits
        ((5, 9), (3,), "VALID"),
        ((5, 9, 4), (3, 3), "VALID"),
    ],
    ids=str,
)
def test_drop_in(rhs: tuple[int, ...], window: tuple[int, ...], padding: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        adapter.conv_general_dilated_local(
            jnp.ones((2, 3, 6)), jnp.ones(rhs), (1,), padding, window
        )


@pytest.mark.parametrize("where", ["x", "w", "y"])
def test_restate(where: str) -> None:
    """Memory orders and extents of a Problem, as adapters ask for them."""
    problem = unshared.Problem("n2 a4>b6 g2 i5x4 k3x2 s2x1 p1x0:1")
    rank = len(problem.shape(where))
    order = tuple(reversed(range(rank)))
    turned = problem.restate(**{where: order})
    steps = [1]
    for extent in problem.shape(where)[:-1]:
        steps.append(steps[-1] * extent)
    assert turned.strides(where) == tuple(
        0 if extent == 1 else step for extent, step in zip(problem.shape(where), steps, strict=True)
    )
    assert turned.restate() == problem and unshared.Problem(str(turned)) == turned
    assert problem.restate(batch=7, in_channels=8, out_channels=2).shape("x") == (7, 8, 5, 4)
    mapped = problem.restate(mapped=3, shared=where)
    assert mapped.mapped == 3 and problem.mapped is None
    assert mapped.strides(where)[0] == 0 and mapped.shape(where)[0] == 3
    assert unshared.Problem(str(mapped)) == mapped == pickle.loads(pickle.dumps(mapped))
    for wrong in ((0,) * rank, order[1:], (*order[1:], rank)):
        with pytest.raises(unshared.ArgumentValueError, match="restate"):
            problem.restate(**{where: wrong})
    with pytest.raises(unshared.ArgumentValueError, match="groups"):
        problem.restate(in_channels=5)


def test_options_of_a_problem() -> None:
    problem = unshared.Problem("n2 a4>b6 g2 i9x8 k3x2 s2x1 p1x0:1 d1x2 e2x1")
    shapes = [problem.shape(seat) for seat in "xw"]
    x, w = (np.ones(shape, np.float32) for shape in shapes)
    assert unshared.Problem(unshared.explain("forward", x, w, **problem.options).problem) == problem
    made = _core.make_problem(
        0, shapes[0], "float32", shapes[1], "float32", None, *problem.options.values()
    )
    assert made == problem
