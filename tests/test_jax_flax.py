"""The Flax layers: linen.ConvLocal in place of Flax's own, nnx.ConvLocal; and Equinox."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import unshared

jax = pytest.importorskip("jax")
pytest.importorskip("flax")
import flax.linen as theirs  # noqa: E402
import flax.serialization  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

import unshared.jax as adapter  # noqa: E402
import unshared.linen as ours  # noqa: E402
import unshared.nnx  # noqa: E402

# fields, and the shape of the inputs
LAYERS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"kernel_size": (3, 3)}, (2, 9, 8, 3)),
    ({"kernel_size": (3, 3), "strides": 2}, (2, 9, 8, 3)),
    ({"kernel_size": (3, 2), "padding": "VALID", "strides": (1, 2)}, (2, 9, 8, 3)),
    ({"kernel_size": (4, 3), "padding": "CIRCULAR", "kernel_dilation": (1, 2)}, (2, 9, 8, 3)),
    ({"kernel_size": (3, 2), "padding": "REFLECT", "use_bias": False}, (2, 9, 8, 3)),
    ({"kernel_size": 3, "padding": "CAUSAL", "kernel_dilation": 2}, (2, 9, 3)),
    ({"kernel_size": (3,), "padding": 1, "strides": None}, (2, 9, 3)),
    ({"kernel_size": (2, 3), "padding": [(1, 0), 2], "input_dilation": 2}, (2, 9, 8, 3)),
    ({"kernel_size": (3, 2, 1), "padding": [1, 0, 1]}, (2, 5, 6, 3, 2)),
    ({"kernel_size": (3, 3)}, (9, 8, 3)),  # no batch
    ({"kernel_size": (3, 3)}, (2, 3, 9, 8, 3)),  # two of them
    ({"kernel_size": (3, 3), "dtype": jnp.bfloat16}, (2, 9, 8, 3)),
    ({"kernel_size": (3, 3), "param_dtype": jnp.float16}, (2, 9, 8, 3)),
    ({"kernel_size": (3, 3), "precision": "highest"}, (2, 9, 8, 3)),
]
layers = pytest.mark.parametrize(("fields", "shape"), LAYERS, ids=str)


def inputs(shape: tuple[int, ...]) -> Any:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def pair(fields: dict[str, Any]) -> tuple[Any, Any]:
    fields = {"features": 4, "bias_init": theirs.initializers.normal(1.0), **fields}
    return theirs.ConvLocal(**fields), ours.ConvLocal(**fields)


def close(got: Any, want: Any, half: bool = False) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype
    tolerance = 0.05 if half or got.dtype.itemsize == 2 else 2e-5
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(want, np.float32), tolerance, tolerance
    )


@layers
def test_linen_is_a_drop_in(fields: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Same parameters from the same key; each layer applies the other's; outputs and gradients."""
    x = inputs(shape)
    a, b = pair(fields)
    va, vb = a.init(jax.random.key(1), x), b.init(jax.random.key(1), x)
    assert jax.tree.structure(va) == jax.tree.structure(vb)
    for p, q in zip(jax.tree.leaves(va), jax.tree.leaves(vb), strict=True):
        assert p.dtype == q.dtype
        np.testing.assert_array_equal(p, q)
    close(b.apply(va, x), a.apply(vb, x))
    gradients = [
        jax.jit(jax.grad(lambda v, x, m=m: jnp.tanh(m.apply(v, x)).sum(), argnums=(0, 1)))(va, x)
        for m in (b, a)
    ]
    for got, want in zip(*map(jax.tree.leaves, gradients), strict=True):
        close(got, want, half="dtype" in fields)


@layers
def test_nnx_computes_the_same(fields: dict[str, Any], shape: tuple[int, ...]) -> None:
    x = inputs(shape)
    _, linen = pair(fields)
    variables = linen.init(jax.random.key(1), x)
    size = fields["kernel_size"]
    spatial = 1 if isinstance(size, int) else len(size)
    options = {k: v for k, v in fields.items() if k not in ("kernel_size", "strides")}
    layer = unshared.nnx.ConvLocal(
        shape[-1],
        4,
        size,
        fields.get("strides", 1),
        input_size=shape[-1 - spatial : -1],
        rngs=nnx.Rngs(0),
        **options,
    )
    assert layer.kernel.shape == variables["params"]["kernel"].shape
    layer.kernel = nnx.Param(variables["params"]["kernel"])
    if fields.get("use_bias", True):
        assert layer.bias.shape == variables["params"]["bias"].shape
        layer.bias = nnx.Param(variables["params"]["bias"])
    np.testing.assert_array_equal(layer(x), linen.apply(variables, x))
    np.testing.assert_array_equal(nnx.jit(lambda m, x: m(x))(layer, x), layer(x))
    gradient = nnx.grad(lambda m: m(x).astype(jnp.float32).sum())(layer)
    assert gradient["kernel"].shape == layer.kernel.shape


def test_checkpoint_of_one_loads_into_the_other() -> None:
    x = inputs((2, 7, 6, 3))
    a, b = pair({"kernel_size": (3, 3), "strides": 2})
    stored = flax.serialization.to_bytes(a.init(jax.random.key(3), x))
    loaded = flax.serialization.from_bytes(b.init(jax.random.key(4), x), stored)
    close(b.apply(loaded, x), a.apply(loaded, x))
    assert isinstance(b, theirs.ConvLocal)


def test_mask() -> None:
    x = inputs((2, 5, 4, 3))
    shape = (5, 4, 27, 4)
    mask = jnp.asarray(np.random.default_rng(0).integers(0, 2, shape), jnp.float32)
    a, b = pair({"kernel_size": (3, 3), "mask": mask})
    variables = a.init(jax.random.key(0), x)
    close(b.apply(variables, x), a.apply(variables, x))
    layer = unshared.nnx.ConvLocal(
        3, 4, (3, 3), input_size=(5, 4), mask=mask, use_bias=False, rngs=nnx.Rngs(0)
    )
    layer.kernel = nnx.Param(variables["params"]["kernel"])
    close(layer(x) + variables["params"]["bias"], b.apply(variables, x))
    for wrong in (mask[:, :, :-1], mask[0]):
        with pytest.raises(ValueError, match="mask"):
            pair({"kernel_size": (3, 3), "mask": wrong})[1].init(jax.random.key(0), x)
        with pytest.raises(ValueError, match="mask"):
            unshared.nnx.ConvLocal(3, 4, (3, 3), input_size=(5, 4), mask=wrong, rngs=nnx.Rngs(0))


def test_groups() -> None:
    """Which Flax's own layer refuses: each group is a layer of its own."""
    x = inputs((2, 6, 5, 4))
    layer = ours.ConvLocal(features=6, kernel_size=(3, 2), feature_group_count=2, use_bias=False)
    variables = layer.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (6, 5, 12, 6)
    halves = [
        pair({"kernel_size": (3, 2), "features": 3, "use_bias": False})[1].apply(
            {"params": {"kernel": kernel[..., 3 * g : 3 * g + 3]}}, x[..., 2 * g : 2 * g + 2]
        )
        for g in (0, 1)
    ]
    np.testing.assert_array_equal(layer.apply(variables, x), jnp.concatenate(halves, -1))
    nnx_layer = unshared.nnx.ConvLocal(
        4, 6, (3, 2), input_size=(6, 5), feature_group_count=2, use_bias=False, rngs=nnx.Rngs(0)
    )
    nnx_layer.kernel = nnx.Param(kernel)
    np.testing.assert_array_equal(nnx_layer(x), layer.apply(variables, x))


def test_initial_scale() -> None:
    """nnx counts C_in * taps into the fan-in; the variance is the same at every place."""
    layer = unshared.nnx.ConvLocal(16, 64, (3, 3), input_size=(6, 5), rngs=nnx.Rngs(0))
    spread = np.std(np.asarray(layer.kernel[...]), axis=(2, 3)) * np.sqrt(16 * 9)
    np.testing.assert_allclose(spread, 1, atol=0.05)
    assert not np.any(layer.bias[...])


def test_errors() -> None:
    layer = unshared.nnx.ConvLocal(3, 4, (3, 3), input_size=(6, 5), rngs=nnx.Rngs(0))
    for shape in ((2, 5, 6, 3), (2, 6, 5, 4), (6, 5)):
        with pytest.raises(unshared.ArgumentValueError, match="6, 5, 3"):
            layer(jnp.ones(shape))
    with pytest.raises(unshared.ArgumentValueError, match="input_size"):
        unshared.nnx.ConvLocal(3, 4, (3, 3), input_size=(6,), rngs=nnx.Rngs(0))
    for fields in ({"padding": "CAUSAL"}, {"padding": [1]}, {"padding": [(1, 2, 3), 1]}):
        _, b = pair({"kernel_size": (3, 3), **fields})
        with pytest.raises(unshared.ArgumentValueError, match="padding"):
            b.init(jax.random.key(0), jnp.ones((1, 6, 5, 3)))
    _, b = pair({"kernel_size": (3, 3)})
    variables = b.init(jax.random.key(0), jnp.ones((1, 6, 5, 3)))
    with pytest.raises(Exception, match="shape"):
        b.apply(variables, jnp.ones((1, 7, 5, 3)))


def test_trains_with_nnx() -> None:
    """A few steps by hand: the loss falls, and jit gives what eager gives."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((16, 6, 6, 2)), jnp.float32)
    target = jnp.asarray(rng.standard_normal((16, 6, 6, 3)), jnp.float32)
    layer = unshared.nnx.ConvLocal(2, 3, (3, 3), input_size=6, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)

    @jax.jit
    def step(state: Any) -> Any:
        def loss(state: Any) -> Any:
            return ((nnx.merge(graph, state)(x) - target) ** 2).mean()

        value, gradient = jax.value_and_grad(loss)(state)
        return value, jax.tree.map(lambda p, g: p - 3 * g, state, gradient)

    losses = []
    for _ in range(60):
        value, state = step(state)
        losses.append(float(value))
    assert losses[-1] < 0.6 * losses[0]


def test_inside_equinox() -> None:
    """The ten lines of the README."""
    if importlib.util.find_spec("equinox") is None:
        pytest.skip("equinox is not installed")
    import equinox as eqx

    class Local(eqx.Module):  # type: ignore[misc]
        weight: jax.Array
        bias: jax.Array

        def __init__(self, key: Any) -> None:
            self.weight = jax.random.normal(key, (6, 6, 8, 3, 3, 3)) / 27**0.5
            self.bias = jnp.zeros((8, 6, 6))

        def __call__(self, x: jax.Array) -> jax.Array:  # of one sample, as in Equinox
            return adapter.forward(x[None], self.weight)[0] + self.bias

    layer = Local(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 3, 8, 8))
    y = jax.vmap(layer)(x)
    np.testing.assert_array_equal(y, unshared.forward(np.asarray(x), np.asarray(layer.weight)))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m: jax.vmap(m)(x).sum()))(layer)
    assert gradient.weight.shape == layer.weight.shape
