"""Peers: the same layer by NumPy, PyTorch, JAX and Keras, for `bench --peers`.

Each peer gets the arrays of the benchmark, x and dy in the memory order of the row, and the weight
in the order it likes best, copied there before the clock starts. It offers each face as a call
without arguments; a peer that cannot do a case raises `PeerError` with the reason. No framework is
imported before its peer is asked for. PyTorch's peers take tensors, too, and compute where x is.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from unshared.bench import Case

Array = npt.NDArray[Any]


class PeerError(Exception):
    """Why a peer is left out of a case, in a few words."""


class MissingError(PeerError):
    """It is left out of every case."""


@dataclass(frozen=True)
class Peer:
    """The three faces as calls, and how each result reads in the library's logical order."""

    name: str
    version: str
    calls: dict[str, Callable[[], Any]]
    logical: dict[str, Callable[[Any], Array]]
    shared: bool = False  # a convolution, which computes something else: a yardstick for time alone


class Sizes:
    """The extents of a case by the letters of the text form, channels `a` and `b` of one group."""

    def __init__(self, case: Case) -> None:
        self.n, _, *i = case.problem.shape("x")
        *o, b, self.a = case.problem.shape("w")[: len(i) + 2]
        self.g: int = case.options["groups"]
        self.b = b // self.g
        self.i, self.o, self.k = tuple(i), tuple(o), case.kernel
        self.places = math.prod(o)
        self.fused = self.a * math.prod(self.k)  # one patch of one group


def installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingError(f"{error.name or name} is not installed") from error


def require_room(s: Sizes, itemsize: int, free: int | None = None) -> None:
    """Patches are the price of these recipes; better left out than ended by the system."""
    need = 4 * s.n * s.places * s.g * s.fused * itemsize  # patches, their copy, their gradient
    if free is None:
        try:
            lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        except OSError:
            return
        free = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}["MemAvailable"]
    if need > free:
        raise PeerError(f"patches of {need / 1e9:.0f} GB, with {free / 1e9:.0f} GB of memory free")


def require(case: Case, axes: int = 3, symmetric: bool = False) -> None:
    if any(e != 1 for e in case.options["input_dilation"]):
        raise PeerError("no input dilation")
    if len(case.kernel) > axes:
        raise PeerError(f"at most {axes} spatial axes")
    if symmetric and any(low != high for low, high in case.options["padding"]):
        raise PeerError("only padding that is equal on both sides")


def packed(w: Array, s: Sizes) -> Array:
    """The weight as one matrix for each place and group: (places, groups, a K, b)."""
    matrices = w.reshape(s.places, s.g, s.b, s.fused).swapaxes(2, 3)
    return np.ascontiguousarray(matrices)


def unpacked(matrices: Any, s: Sizes) -> Array:
    w = np.asarray(matrices).reshape(s.places, s.g, s.fused, s.b).swapaxes(2, 3)
    return w.reshape(*s.o, s.g * s.b, s.a, *s.k)


def channels_last(x: Array) -> bool:
    return 0 <= x.strides[1] < x.strides[-1]


def row_major(t: Array, last: bool) -> Array:
    """For arrays that know no strides: in the order of memory, its channels last or first."""
    return np.ascontiguousarray(np.moveaxis(t, 1, -1) if last else t)


def logical(t: Any, last: bool) -> Array:
    return np.moveaxis(np.asarray(t), -1, 1) if last else np.asarray(t)


def numpy_windows(case: Case, x: Array, w: Array, dy: Array, threads: int) -> Peer:
    """Sliding windows, copied to patches; one matrix product for each place; folded tap by tap."""
    require(case)
    s = Sizes(case)
    require_room(s, x.itemsize)
    # NumPy has no call for it: the number of threads is that of its BLAS.
    installed("threadpoolctl").threadpool_limits(limits=threads, user_api="blas")
    axes = len(s.k)
    padding, stride, dilation = (case.options[name] for name in ("padding", "stride", "dilation"))
    matrices = packed(w, s)
    # (n, g, a, *o, *k) -> (*o, g, n, a, *k)
    forth = (*range(3, 3 + axes), 1, 0, 2, *range(3 + axes, 3 + 2 * axes))

    def patches() -> Array:
        padded = np.pad(x, [(0, 0), (0, 0), *padding])
        reach = tuple((k - 1) * d + 1 for k, d in zip(s.k, dilation, strict=True))
        windows: Array = sliding_window_view(padded, reach, tuple(range(2, 2 + axes)))
        steps = [slice(None, None, step) for step in (*stride, *dilation)]
        windows = windows[(slice(None), slice(None), *steps)]
        windows = windows.reshape(s.n, s.g, s.a, *s.o, *s.k)
        return windows.transpose(forth).reshape(s.places, s.g, s.n, s.fused)

    def dy_places() -> Array:
        return np.ascontiguousarray(dy.reshape(s.n, s.g, s.b, s.places).transpose(3, 1, 0, 2))

    def grad_input() -> Array:
        columns: Any = dy_places() @ matrices.swapaxes(2, 3)
        columns = columns.reshape(*s.o, s.g, s.n, s.a, *s.k).transpose(np.argsort(forth))
        extents = [i + low + high for i, (low, high) in zip(s.i, padding, strict=True)]
        dx: Any = np.zeros((s.n, s.g, s.a, *extents), x.dtype)
        for tap in np.ndindex(*s.k):
            reached = tuple(
                slice(t * d, t * d + (o - 1) * step + 1, step)
                for t, d, o, step in zip(tap, dilation, s.o, stride, strict=True)
            )
            dx[..., *reached] += columns[..., *tap]
        inside = (slice(low, low + i) for i, (low, _) in zip(s.i, padding, strict=True))
        found: Array = dx[..., *inside]
        return found

    return Peer(
        "numpy windows + matmul",
        np.__version__,
        {
            "forward": lambda: patches() @ matrices,
            "grad_input": grad_input,
            "grad_weight": lambda: patches().swapaxes(2, 3) @ dy_places(),
        },
        {
            "forward": lambda y: y.transpose(2, 1, 3, 0).reshape(s.n, s.g * s.b, *s.o),
            "grad_input": lambda dx: dx.reshape(x.shape),
            "grad_weight": lambda dw: unpacked(dw, s),
        },
    )


def prepare(torch: ModuleType, x: Any, threads: int) -> None:
    """On a GPU there is nothing to set."""
    if not x.is_cuda:
        torch.set_num_threads(threads)


def torch_patches(
    name: str,
    product: Callable[[ModuleType, Sizes, Any, Any], Any],
    weight: Callable[[Array, Sizes], Array],
    logical_weight: Callable[[Array, Sizes], Array],
) -> Callable[[Case, Array, Array, Array, int], Peer]:
    """A peer that unfolds patches (n, g, a K, places) and makes y (n, places, g, b) by `product`.

    Each gradient is taken alone, by autograd, from a graph made before the clock starts.
    """

    def make(case: Case, x: Array, w: Array, dy: Array, threads: int) -> Peer:
        require(case, axes=2, symmetric=True)
        s = Sizes(case)
        torch = installed("torch")
        tx, tdy = torch.as_tensor(x), torch.as_tensor(dy)
        prepare(torch, tx, threads)
        require_room(s, x.itemsize, torch.cuda.mem_get_info()[0] if tx.is_cuda else None)
        narrow = len(s.k) == 1  # unfold knows images only: a line is an image one high

        def both(name: str, idle: int) -> list[int]:
            values = [v[0] if isinstance(v, tuple) else v for v in case.options[name]]
            return [idle, *values] if narrow else values

        options = {
            "kernel_size": (1, *s.k) if narrow else s.k,
            "dilation": both("dilation", 1),
            "padding": both("padding", 0),
            "stride": both("stride", 1),
        }

        def layer(x: Any, w: Any) -> Any:
            patches = torch.nn.functional.unfold(x.unsqueeze(2) if narrow else x, **options)
            y = product(torch, s, patches.view(s.n, s.g, s.fused, s.places), w)
            return y.permute(0, 2, 3, 1).reshape(s.n, s.g * s.b, *s.o)

        tw = torch.from_numpy(weight(w, s)).to(tx.device)
        leaf_x, leaf_w = tx.detach().requires_grad_(), tw.detach().requires_grad_()
        y = layer(leaf_x, leaf_w)

        def gradient(leaf: Any) -> Callable[[], Any]:
            return lambda: torch.autograd.grad(y, leaf, tdy, retain_graph=True)[0]

        return Peer(
            name,
            torch.__version__,
            {
                "forward": lambda: layer(tx, tw),
                "grad_input": gradient(leaf_x),
                "grad_weight": gradient(leaf_w),
            },
            {
                "forward": lambda y: y.cpu().numpy(),
                "grad_input": lambda dx: dx.cpu().numpy(),
                "grad_weight": lambda dw: logical_weight(dw.cpu().numpy(), s),
            },
        )

    make.__name__ = name
    return make


def bmm(torch: ModuleType, s: Sizes, patches: Any, w: Any) -> Any:
    """One matrix product for each place and group."""
    patches = patches.permute(3, 1, 0, 2).reshape(s.places * s.g, s.n, s.fused)
    y = torch.bmm(patches, w.view(s.places * s.g, s.fused, s.b))
    return y.view(s.places, s.g, s.n, s.b).permute(2, 0, 1, 3)


def einsum(torch: ModuleType, s: Sizes, patches: Any, w: Any) -> Any:
    """The same, its order of work left to torch.einsum."""
    return torch.einsum("ngkp,pgkb->npgb", patches, w)


def grouped(torch: ModuleType, s: Sizes, patches: Any, w: Any) -> Any:
    """Every place a group of its own, of a convolution whose kernel is as large as its input."""
    patches = patches.permute(0, 3, 1, 2).reshape(s.n, s.places * s.g * s.a, *s.k)
    conv = getattr(torch.nn.functional, f"conv{len(s.k)}d")
    return conv(patches, w, groups=s.places * s.g).view(s.n, s.places, s.g, s.b)


def as_filters(w: Array, s: Sizes) -> Array:
    return np.ascontiguousarray(w.reshape(-1, s.a, *s.k))


def from_filters(w: Array, s: Sizes) -> Array:
    return w.reshape(*s.o, s.g * s.b, s.a, *s.k)


torch_unfold = torch_patches("torch unfold + bmm", bmm, packed, unpacked)
torch_einsum = torch_patches("torch unfold + einsum", einsum, packed, unpacked)
torch_grouped = torch_patches("torch unfold + grouped conv", grouped, as_filters, from_filters)


def torch_shared(case: Case, x: Array, w: Array, dy: Array, threads: int) -> Peer:
    """PyTorch's convolution of the same shape, its weight that of the first place."""
    require(case, symmetric=True)
    s = Sizes(case)
    torch = installed("torch")
    tx, tdy = torch.as_tensor(x), torch.as_tensor(dy)
    prepare(torch, tx, threads)
    conv = f"conv{len(s.k)}d"
    tw = torch.from_numpy(np.ascontiguousarray(w[(0,) * len(s.k)])).to(tx.device)
    options = {name: case.options[name] for name in ("stride", "dilation", "groups")}
    options["padding"] = [low for low, _ in case.options["padding"]]
    forward = getattr(torch.nn.functional, conv)
    grad_input = getattr(torch.nn.grad, f"{conv}_input")
    grad_weight = getattr(torch.nn.grad, f"{conv}_weight")
    return Peer(
        "torch conv, shared weights",
        torch.__version__,
        {
            "forward": lambda: forward(tx, tw, **options),
            "grad_input": lambda: grad_input(tx.shape, tw, tdy, **options),
            "grad_weight": lambda: grad_weight(tx, tw.shape, tdy, **options),
        },
        {},
        shared=True,
    )


def jax_local(
    case: Case, x: Array, w: Array, dy: Array, threads: int, platform: str = "cpu"
) -> Peer:
    """conv_general_dilated_local under jit, its gradients through vjp, each alone."""
    s = Sizes(case)
    if s.g != 1:
        raise PeerError("no groups")
    require_room(s, x.itemsize)
    # Read once, when JAX first computes: like is compared with like, on as many threads.
    os.environ["JAX_PLATFORMS"] = platform
    os.environ["NPROC"] = str(threads)
    jax = installed("jax")
    if x.dtype == np.float64:
        jax.config.update("jax_enable_x64", True)
    # Channels last or first is said by names of the axes.
    last = channels_last(x)
    names = "DHW"[-len(s.k) :]
    data = f"N{names}C" if last else f"NC{names}"

    def layer(x: Any, w: Any) -> Any:
        o = case.options
        return jax.lax.conv_general_dilated_local(
            x, w, o["stride"], o["padding"], s.k, o["input_dilation"], o["dilation"],
            (data, f"{names}IO", data),
        )  # fmt: skip

    def pull_x(x: Any, w: Any, dy: Any) -> Any:
        return jax.vjp(lambda x: layer(x, w), x)[1](dy)[0]

    def pull_w(x: Any, w: Any, dy: Any) -> Any:
        return jax.vjp(lambda w: layer(x, w), w)[1](dy)[0]

    def call(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(*args))

    jx, jdy = (jax.numpy.asarray(row_major(t, last)) for t in (x, dy))
    jw = jax.numpy.asarray(packed(w, s).reshape(*s.o, s.fused, s.b))
    return Peer(
        "jax conv_general_dilated_local",
        jax.__version__,
        {
            "forward": call(layer, jx, jw),
            "grad_input": call(pull_x, jx, jw, jdy),
            "grad_weight": call(pull_w, jx, jw, jdy),
        },
        {
            "forward": lambda y: logical(y, last),
            "grad_input": lambda dx: logical(dx, last),
            "grad_weight": lambda dw: unpacked(dw, s),
        },
    )


def keras_local(case: Case, x: Array, w: Array, dy: Array, threads: int) -> Peer:
    """LocallyConnected1D or 2D in its default implementation, traced; padding is a layer ahead."""
    require(case, axes=2)
    s = Sizes(case)
    if s.g != 1 or any(d != 1 for d in case.options["dilation"]):
        raise PeerError("no groups or dilation")
    if s.places > 1024:  # to trace these takes a minute
        raise PeerError("too many places, each a slice in a graph")
    require_room(s, x.itemsize)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tf, keras = installed("tensorflow"), installed("tf_keras")
    tf.get_logger().setLevel("ERROR")  # it takes the many cases for one function traced again
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    last, axes = channels_last(x), len(s.k)
    tx, tdy = (tf.constant(row_major(t, last)) for t in (x, dy))
    padding = [(0, 0), *case.options["padding"]]
    padding.insert(len(padding) if last else 1, (0, 0))
    local = getattr(keras.layers, f"LocallyConnected{axes}D")(
        s.b,
        s.k,
        strides=case.options["stride"],
        data_format="channels_last" if last else "channels_first",
        use_bias=False,
        dtype=x.dtype.name,
    )

    def layer(x: Any) -> Any:
        return local(tf.pad(x, padding) if any(map(any, padding)) else x)

    layer(tx)  # makes the weight: (places, patch, b), a patch in the order of x
    fused = (axes + 1, 2 * axes + 1) if last else (axes + 1, axes + 1)  # of a, in w
    matrices = np.moveaxis(w, *fused).reshape(s.places, s.b, s.fused).swapaxes(1, 2)
    local.set_weights([matrices])

    def logical_weight(dw: Any) -> Array:
        patch = (*s.k, s.a) if last else (s.a, *s.k)
        found = np.asarray(dw).swapaxes(1, 2).reshape(*s.o, s.b, *patch)
        return np.moveaxis(found, *reversed(fused))

    def pull(x: Any, of: Any, dy: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(of)
            y = layer(x)
        return tape.gradient(y, of, output_gradients=dy)

    def call(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        traced = tf.function(function)
        return lambda: traced(*args).numpy()

    return Peer(
        f"tf_keras LocallyConnected{axes}D",
        f"{keras.__version__}, tensorflow {tf.__version__}",
        {
            "forward": call(layer, tx),
            "grad_input": call(lambda x, dy: pull(x, x, dy), tx, tdy),
            "grad_weight": call(lambda x, dy: pull(x, local.trainable_weights[0], dy), tx, tdy),
        },
        {
            "forward": lambda y: logical(y, last),
            "grad_input": lambda dx: logical(dx, last),
            "grad_weight": logical_weight,
        },
    )


PEERS: tuple[Callable[[Case, Array, Array, Array, int], Peer], ...] = (
    numpy_windows,
    torch_unfold,
    torch_einsum,
    torch_grouped,
    jax_local,
    keras_local,
    torch_shared,
)

OF_TORCH = (torch_unfold, torch_einsum, torch_grouped, torch_shared)  # on tensors of any device
