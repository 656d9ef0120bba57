"""How a call of `unshared.jax` is divided over the devices of a mesh.

Batch, output and input channels (and a mapped extent) may be divided without moving an operand;
where a divided extent is summed over, the partial sums are added up. Places, taps and groups stay
whole. The partitioner is told so by a rule of Shardy, on `jax.experimental.custom_partitioning`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

import unshared

_DIVIDED = ("m", "n", "a", "b")


def letters(geometry: Any, seat: str) -> tuple[str, ...]:
    """What each axis of an array is called: m, n, a, b; what stays whole by other names."""
    spatial = range(len(geometry.problem.options["stride"]))
    grouped = geometry.problem.options["groups"] > 1
    places, taps, inputs = ([f"{letter}{s}" for s in spatial] for letter in "oki")
    if seat == "w":  # with groups, or joined to taps, its input channels are not those of x
        names = [*places, "b", "c" if grouped else "a", *taps]
    else:
        names = ["n", "a" if seat == "x" else "b", *(inputs if seat == "x" else places)]
    joined = [names[axes[0]] if len(axes) == 1 else "f" for axes in geometry.axes(seat)]
    return (*(("m",) if geometry.lead(seat) else ()), *joined)


def result_spec(
    face: str, names: Sequence[tuple[str, ...]], specs: Sequence[Sequence[Any]]
) -> tuple[Any, ...]:
    """The mesh axes of the result where the user states all shardings (explicit meshes)."""
    axes: dict[str, Any] = {}
    for dims, spec in zip(names, specs, strict=False):
        for name, axis in zip(dims, spec, strict=False):
            if axis is None:
                continue
            if name not in _DIVIDED:
                raise unshared.ArgumentValueError(
                    f"unshared.{face}: expected operands whose places and taps (and input "
                    "channels that share an axis with taps) are whole, found them divided over "
                    f"{axis!r}"
                )
            if axes.setdefault(name, axis) != axis:
                raise unshared.ArgumentValueError(
                    f"unshared.{face}: expected one division of {name!r}, found {axes[name]!r} and "
                    f"{axis!r}"
                )
    return tuple(axes.get(name) for name in names[2])


def wanted(context: Any) -> bool:
    """Whether XLA will divide this call: several devices, and not inside shard_map or the like."""
    try:
        devices = context.module_context.axis_context.num_devices
    except (AttributeError, ValueError):
        return False
    return devices is not None and devices > 1 and _asked


_asked = False


def may_ask_for_devices(primitive: Any) -> None:
    """Let the lowering of a primitive see the mesh; without it a call runs whole on every device.

    The one private name of jax in use. Where it is gone, and where the partitioner knows no such
    rules (jax 0.6), shard_map still divides calls.
    """
    global _asked
    rules = inspect.signature(custom_partitioning.def_partition).parameters
    try:
        from jax._src.dispatch import prim_requires_devices_during_lowering as private
    except ImportError:
        return
    if "need_replication_factors" in rules:
        private.add(primitive)
        _asked = True


@functools.cache
def partitioned(face: str, geometry: Any) -> Callable[[Any, Any], Any]:
    """The call as a function that the partitioner may divide."""
    from unshared.jax import _SEATS, _bind

    names = [letters(geometry, seat) for seat in _SEATS[face]]
    whole = geometry.problem.options["groups"] > 1

    factors = dict.fromkeys(name for dims in names for name in dims)  # in order of appearance
    fused = "f" in factors  # then input channels cannot be divided alike in x and w
    fixed = [f for f in factors if f not in _DIVIDED or whole * (f in "ab") or fused * (f == "a")]
    reduced = [f for f in factors if f not in fixed and f not in names[2]]

    def agreed(specs: Sequence[Sequence[Any]]) -> dict[str, tuple[str, ...]]:
        """Mesh axes of each dimension that may be divided: what the first to name any says."""
        axes: dict[str, tuple[str, ...]] = {}
        for dims, spec in zip(names, specs, strict=False):
            for name, axis in zip(dims, spec, strict=False):
                over = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
                taken = {used for others in axes.values() for used in others}
                if name not in fixed and name not in axes and over and not taken & set(over):
                    axes[name] = over
        return axes

    def sharding(mesh: Any, dims: tuple[str, ...], axes: dict[str, tuple[str, ...]]) -> Any:
        return NamedSharding(mesh, PartitionSpec(*(axes.get(name) or None for name in dims)))

    @custom_partitioning  # type: ignore[untyped-decorator]
    def call(first: Any, second: Any) -> Any:
        return _bind(face, first, second, geometry)

    def divide(mesh: Any, operands: Any, result: Any) -> Any:
        axes = agreed([array.sharding.spec for array in (*operands, result)])
        summed = [axis for name in reduced for axis in axes.get(name, ())]

        def local(first: Any, second: Any) -> Any:
            extents = dict(zip(names[0] + names[1], first.shape + second.shape, strict=True))
            sizes = {"mapped": "m", "batch": "n", "in_channels": "a", "out_channels": "b"}
            given = {size: extents[name] for size, name in sizes.items() if name in extents}
            problem = geometry.problem.restate(**given)
            part = _bind(face, first, second, geometry._replace(problem=problem))
            with _no_mesh():  # a sum inside a partition is none of an explicit mesh's business
                return jax.lax.psum(part, tuple(summed)) if summed else part

        first, second, out = (sharding(mesh, dims, axes) for dims in names)
        return mesh, local, out, (first, second)

    first, second, result = (" ".join(dims) for dims in names)
    call.def_partition(
        divide,
        infer_sharding_from_operands=lambda mesh, operands, result: sharding(
            mesh, names[2], agreed([operand.sharding.spec for operand in operands])
        ),
        sharding_rule=f"{first}, {second} -> {result}",
        reduction_factors=tuple(reduced),
        need_replication_factors=tuple(fixed),
    )
    return call  # type: ignore[no-any-return]


def _no_mesh() -> contextlib.AbstractContextManager[Any]:
    if not hasattr(jax.sharding, "use_abstract_mesh"):  # before jax 0.7
        return contextlib.nullcontext()
    mesh: Any = jax.sharding.AbstractMesh((), ())
    scope: contextlib.AbstractContextManager[Any] = jax.sharding.use_abstract_mesh(mesh)
    return scope
