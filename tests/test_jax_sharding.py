"""Over several devices: shard_map, automatic sharding by jit, explicit meshes.

Read off the compiled program: which collectives XLA put in, and what each device computes.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest

import unshared
from cases import parse

jax = pytest.importorskip("jax")
from jax.experimental.custom_partitioning import custom_partitioning  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

import unshared.jax as adapter  # noqa: E402
from unshared import _core, _partition  # noqa: E402

P = PartitionSpec
CASE = parse("n8 a4>b8 i9x8 k3x3")
# an early custom_partitioning cannot be told to keep a dimension whole
RULES = (
    "need_replication_factors" in inspect.signature(custom_partitioning.def_partition).parameters
)
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@pytest.fixture
def mesh() -> Any:
    if not RULES:
        pytest.skip(f"jax {jax.__version__} has no sharding rules that keep dimensions whole")
    if len(jax.devices()) < 4:
        pytest.fail("four host devices are needed: conftest.py asks for them in XLA_FLAGS")
    return Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("d", "c"))


@pytest.fixture
def data(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Integers: every order of summation gives the same."""
    x, w = (rng.integers(-3, 4, CASE.shape(seat)).astype(np.float32) for seat in "xw")
    return x, w


def loss(x: Any, w: Any) -> Any:
    return (adapter.forward(x, w) ** 2).sum() / 2


def gradients(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y = unshared.forward(x, w)
    return unshared.grad_input(y, w, CASE.i), unshared.grad_weight(x, y, CASE.k)


def report(function: Any, *arrays: Any) -> tuple[dict[str, int], set[str]]:
    """Collectives in the compiled program, and the problems that each device solves."""
    text = jax.jit(function).lower(*arrays).compile().as_text()
    counts = {word: len(re.findall(rf" {word}(?:-start)?\(", text)) for word in COLLECTIVES}
    return {w: n for w, n in counts.items() if n}, set(re.findall(r'problem = "([^"]*)"', text))


LAYOUTS = [
    # of x, of w, of y; the problem of one device; collectives of the gradients
    (P("d"), P(), P("d"), "n4 a4>b8 i9x8 k3x3"),
    (P(("d", "c")), P(), P(("d", "c")), "n2 a4>b8 i9x8 k3x3"),
    (P("d"), P(None, None, "c"), P("d", "c"), "n4 a4>b4 i9x8 k3x3"),
    (P(), P(None, None, "c"), P(None, "c"), "n8 a4>b4 i9x8 k3x3"),
]


@pytest.mark.transformation(
    "automatic sharding of batch and C_out under jit", "supported", note="no all-gather"
)
@pytest.mark.parametrize(("x_spec", "w_spec", "y_spec", "local"), LAYOUTS, ids=str)
def test_automatic(mesh: Any, data: Any, x_spec: Any, w_spec: Any, y_spec: Any, local: str) -> None:
    put = [jax.device_put(v, NamedSharding(mesh, s)) for v, s in zip(data, (x_spec, w_spec))]  # noqa: B905
    assert report(adapter.forward, *put) == ({}, {local})
    y = jax.jit(adapter.forward)(*put)
    np.testing.assert_array_equal(y, unshared.forward(*data))
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, y_spec), y.ndim)

    both = jax.grad(loss, argnums=(0, 1))
    collectives, problems = report(both, *put)
    assert set(collectives) <= {"all-reduce"} and problems == {local}
    for got, want, spec in zip(jax.jit(both)(*put), gradients(*data), (x_spec, w_spec)):  # noqa: B905
        np.testing.assert_array_equal(got, want)
        assert got.sharding.is_equivalent_to(NamedSharding(mesh, spec), got.ndim)


@pytest.mark.transformation("automatic sharding of C_in", "supported", note="sums are added up")
def test_automatic_over_input_channels(mesh: Any, data: Any) -> None:
    specs = P(None, "c"), P(None, None, None, "c")
    put = [jax.device_put(v, NamedSharding(mesh, s)) for v, s in zip(data, specs, strict=True)]
    assert report(adapter.forward, *put) == ({"all-reduce": 1}, {"n8 a2>b8 i9x8 k3x3"})
    np.testing.assert_array_equal(jax.jit(adapter.forward)(*put), unshared.forward(*data))


@pytest.mark.transformation(
    "automatic sharding of places", "limit", note="right, but x and w are gathered"
)
def test_automatic_over_places_is_gathered(mesh: Any, data: Any) -> None:
    x, w = data
    put = jax.device_put(x, NamedSharding(mesh, P(None, None, None, "c")))
    np.testing.assert_array_equal(jax.jit(adapter.forward)(put, w), unshared.forward(x, w))
    assert report(adapter.forward, put, w)[1] == {str(CASE)}


def test_automatic_with_dimension_numbers(mesh: Any, data: Any) -> None:
    """NHWC and HWIO, where input channels and taps share an axis."""
    x, w = data
    lhs = x.transpose(0, 2, 3, 1)
    rhs = w.transpose(0, 1, 3, 4, 5, 2).reshape(*CASE.out, -1, CASE.b)

    def layer(lhs: Any, rhs: Any) -> Any:
        return adapter.conv_general_dilated_local(
            lhs, rhs, (1, 1), "VALID", (3, 3), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    put = [
        jax.device_put(lhs, NamedSharding(mesh, P("d"))),
        jax.device_put(rhs, NamedSharding(mesh, P(None, None, None, "c"))),
    ]
    local = "n4 a4>b4 i9x8 k3x3 x:nia w:oakb y:nob"
    assert report(layer, *put) == ({}, {local})
    want = unshared.forward(x, w).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(jax.jit(layer)(*put), want)
    both = jax.grad(lambda a, b: (layer(a, b) ** 2).sum(), argnums=(0, 1))
    collectives, problems = report(both, *put)
    assert set(collectives) <= {"all-reduce"} and problems == {local}
    whole = jax.device_put(rhs, NamedSharding(mesh, P(None, None, "c")))  # divided taps: gathered
    np.testing.assert_array_equal(jax.jit(layer)(put[0], whole), want)


def test_automatic_with_groups_and_vmap(mesh: Any, rng: np.random.Generator) -> None:
    case = parse("n4 a4>b8 g2 i7 k3")
    x, w = (rng.integers(-3, 4, (4, *case.shape(seat))).astype(np.float32) for seat in "xw")
    each = np.stack([unshared.forward(a, b, groups=2) for a, b in zip(x, w, strict=True)])
    mapped = jax.vmap(lambda a, b: adapter.forward(a, b, groups=2))
    put = [jax.device_put(v, NamedSharding(mesh, P("d"))) for v in (x, w)]
    assert report(mapped, *put) == ({}, {"m2 n4 a4>b8 g2 i7 k3"})
    np.testing.assert_array_equal(jax.jit(mapped)(*put), each)
    specs = P(None, "d"), P(None, None, "c")
    put = [jax.device_put(v, NamedSharding(mesh, s)) for v, s in zip((x, w), specs, strict=True)]
    np.testing.assert_array_equal(jax.jit(mapped)(*put), each)


@pytest.mark.transformation("shard_map", "supported", note="weight gradient summed over the batch")
def test_shard_map(data: Any) -> None:
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
    x, w = data
    specs = {"mesh": mesh, "in_specs": (P("d"), P())}
    layer = jax.shard_map(adapter.forward, out_specs=P("d"), **specs)
    np.testing.assert_array_equal(jax.jit(layer)(x, w), unshared.forward(x, w))

    def total(x: Any, w: Any) -> Any:
        return jax.lax.psum(loss(x, w), "d")

    outside = jax.grad(jax.shard_map(total, out_specs=P(), **specs), argnums=(0, 1))
    for got, want in zip(jax.jit(outside)(x, w), gradients(x, w), strict=True):
        np.testing.assert_array_equal(got, want)
    collectives, problems = report(outside, x, w)
    assert set(collectives) == {"all-reduce"} and problems == {"n2 a4>b8 i9x8 k3x3"}

    inside = jax.shard_map(jax.grad(loss, argnums=1), out_specs=P(), **specs)
    np.testing.assert_array_equal(jax.jit(inside)(x, w), gradients(x, w)[1])


def test_shard_map_on_platforms_without_kernels(data: Any) -> None:
    """The fallback is traced inside the manual region, where types say what varies."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
    x, w = data
    specs = {"mesh": mesh, "in_specs": (P("d"), P()), "out_specs": (P("d"), P())}
    both = jax.jit(jax.shard_map(jax.grad(loss, argnums=(0, 1)), **specs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_core, "xla_handlers", None)  # nothing may ask for them
        text = both.trace(x, w).lower(lowering_platforms=("tpu",)).as_text()
    assert "unshared_" not in text and "all_reduce" in text


@pytest.mark.transformation("pmap", "supported")
def test_pmap(data: Any) -> None:
    x, w = data
    y = jax.pmap(adapter.forward, in_axes=(0, None))(x.reshape(4, 2, *x.shape[1:]), w)
    np.testing.assert_array_equal(np.asarray(y).reshape(-1, *y.shape[2:]), unshared.forward(x, w))


@pytest.mark.transformation("explicit meshes (sharding in types)", "supported")
def test_explicit_mesh(data: Any) -> None:
    if not hasattr(jax, "set_mesh"):
        pytest.skip(f"jax {jax.__version__} has no jax.set_mesh")
    axis = jax.sharding.AxisType.Explicit
    mesh = jax.make_mesh((2, 2), ("d", "c"), axis_types=(axis, axis))
    x, w = data
    with jax.set_mesh(mesh):
        put = [jax.device_put(x, P("d")), jax.device_put(w, P(None, None, "c"))]
        y = jax.jit(adapter.forward)(*put)
        assert tuple(jax.typeof(y).sharding.spec)[:2] == ("d", "c")
        np.testing.assert_array_equal(y, unshared.forward(x, w))
        assert report(adapter.forward, *put) == ({}, {"n4 a4>b4 i9x8 k3x3"})
        for got, want in zip(
            jax.jit(jax.grad(loss, argnums=(0, 1)))(*put), gradients(x, w), strict=True
        ):
            np.testing.assert_array_equal(got, want)
        with pytest.raises(ValueError, match="places and taps"):
            jax.jit(adapter.forward)(jax.device_put(x, P(None, None, None, "c")), w)


def test_without_the_private_name(mesh: Any, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where jax no longer has it, a divided operand is gathered, and the result is right."""
    monkeypatch.setattr(_partition, "_asked", False)
    x, w = data
    put = jax.device_put(x, NamedSharding(mesh, P("d")))

    def layer(x: Any, w: Any) -> Any:
        return adapter.forward(x, w) * 1

    np.testing.assert_array_equal(jax.jit(layer)(put, w), unshared.forward(x, w))
    assert report(layer, put, w)[0] == {"all-gather": 1}


def test_the_private_name_is_there() -> None:
    """Should this fail on a new jax: automatic sharding is gone, see _partition.py."""
    assert _partition._asked == RULES
