"""PyTorch on two processes (gloo, loopback): data parallel, fully sharded, and DTensor's rules.

The numbers are small integers and powers of two, so that every sum is exact in any order: equality
with one process is of bits. Each test starts its processes, and ends them if they take too long.
"""

from __future__ import annotations

import copy
import datetime
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

import torch.multiprocessing as mp  # noqa: E402

import unshared.torch as ut  # noqa: E402
from unshared.torch import operators  # noqa: E402

WORLD = 2
SECONDS = 120


def _child(rank: int, port: int, job: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=SECONDS // 2),
    )
    try:
        job(rank, *args)
    finally:
        dist.destroy_process_group()
    os._exit(0)  # threads of gloo may outlive the interpreter, whose end they would abort


def run(job: Callable[..., None], *args: Any) -> None:
    """Run job(rank, *args) in each process; an assertion that fails there fails here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    processes = mp.spawn(_child, (port, job, *args), nprocs=WORLD, join=False)
    until = time.monotonic() + SECONDS
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < until, f"not done after {SECONDS} s"
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()


def integers(seed: int, *shape: int, dtype: Any = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).to(dtype)


# --- DDP and FSDP2 --------------------------------------------------------------------------------


def _model() -> Any:
    model = torch.nn.Sequential(
        ut.LocallyConnected2d(2, 4, 6, 3, padding=1),
        torch.nn.ReLU(),
        ut.LocallyConnected2d(4, 3, 6, 2, stride=2, groups=1, bias="shared"),
        torch.nn.ReLU(),
        ut.LocallyConnectedTranspose2d(3, 1, 3, 2, stride=2),
    ).double()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(integers(seed, *parameter.shape))
    return model


def _train(model: Any, x: Any, share: float) -> list[list[Any]]:
    """Two steps; the gradients of each and the parameters after it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-12)
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        (model(x).sum() * share).backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.step()
        seen.append([*gradients, *(parameter.detach().clone() for parameter in model.parameters())])
    return seen


def _assert_like_one_process(wrapped: Any, rank: int, whole: Callable[[Any], Any]) -> None:
    x = integers(100, 6, 2, 6, 6)
    # Both wrappers average over the processes: half of what one process sums up.
    want = _train(_model(), x, 1 / WORLD)
    got = _train(wrapped, x.chunk(WORLD)[rank], 1)
    for step, (wants, gots) in enumerate(zip(want, got, strict=True)):
        for i, (a, b) in enumerate(zip(wants, gots, strict=True)):
            assert a.abs().sum() > 0
            assert torch.equal(a, whole(b)), f"step {step}, tensor {i}"


def _ddp(rank: int) -> None:
    model = torch.nn.parallel.DistributedDataParallel(_model())
    _assert_like_one_process(model, rank, lambda tensor: tensor)


def _fsdp(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    model = _model()
    size = model[0].weight.numel()
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert model[0].weight.to_local().numel() == size // WORLD, "each process holds its part"
    _assert_like_one_process(model, rank, lambda tensor: tensor.full_tensor())


@pytest.mark.transformation("DistributedDataParallel", "supported")
def test_ddp() -> None:
    run(_ddp)


@pytest.mark.transformation(
    "FSDP2 (fully_shard)", "supported", note="weights are split along the first axis of places"
)
def test_fsdp() -> None:
    run(_fsdp)


# --- DTensor --------------------------------------------------------------------------------------


def _split(rank: int) -> None:
    """Every letter, both directions, 1 to 3 axes: values, placements, and nobody gathers."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = init_device_mesh("cpu", (WORLD,))
    whole, part = Replicate(), Partial()

    def check(function: Any, shapes: Any, options: Any, letter: str, places: Any) -> None:
        """`places`: how x, w, y lie, and so the gradients by x and w."""
        x_place, w_place, y_place = places
        x, w, dy = (integers(7 + i, *shape) for i, shape in enumerate(shapes))
        pair = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        y = function(*pair, **options)
        y.backward(dy)
        split = [
            distribute_tensor(tensor, mesh, [place]).requires_grad_()
            for tensor, place in ((x, x_place), (w, w_place))
        ]
        cotangent = distribute_tensor(dy, mesh, [whole if y_place == part else y_place])
        with CommDebugMode() as communication:
            got = function(*split, **options)
            assert got.placements == (y_place,), (letter, got.placements)
            got.backward(cotangent)
        assert communication.get_total_counts() == 0, (letter, communication.get_comm_counts())
        assert torch.equal(got.full_tensor(), y)
        for tensor, reference, place in zip(split, pair, (x_place, w_place), strict=True):
            # What is whole, and belongs to a sum over what is split, comes as parts of that sum.
            expected = part if place == whole and letter != "nothing" else place
            assert tensor.grad.placements == (expected,), (letter, tensor.grad.placements)
            assert torch.equal(tensor.grad.full_tensor(), reference.grad)

    for axes in (1, 2, 3):
        wide, narrow, kernel = (5,) * axes, (2,) * axes, (3,) * axes
        shapes = (3, 4, *wide), (*narrow, 6, 4, *kernel), (3, 6, *narrow)
        for letter, places in {
            "n": (Shard(0), whole, Shard(0)),
            "a": (Shard(1), Shard(axes + 1), part),
            "b": (whole, Shard(axes), Shard(1)),
            "nothing": (whole, whole, whole),
        }.items():
            options = {"stride": 2}
            check(ut.locally_connected, shapes, options, letter, places)
            x_place, w_place, y_place = places
            turned = shapes[::-1]
            if letter in "ab":  # y now holds the sum over b, and x is split with it
                x_place, y_place = (Shard(1), part) if letter == "b" else (whole, Shard(1))
            check(
                ut.locally_connected_transpose, turned, options, letter, (x_place, w_place, y_place)
            )


@pytest.mark.transformation(
    "DTensor, split by batch, C_in or C_out", "supported", note="nothing is gathered"
)
def test_dtensor_split() -> None:
    run(_split)


def _gathered(rank: int) -> None:
    """What cannot be split is gathered, and right; shapes that only geometry tells apart."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = init_device_mesh("cpu", (WORLD,))

    def split(tensor: Any, place: Any) -> Any:
        return distribute_tensor(tensor, mesh, [place])

    # places
    x, w = integers(1, 2, 4, 6), integers(2, 4, 6, 4, 3)
    for x_place, w_place in (
        (Replicate(), Shard(0)),
        (Shard(2), Replicate()),
        (Shard(2), Shard(3)),
    ):
        pair = split(x, x_place), split(w, w_place)
        with CommDebugMode() as communication:
            y = ut.locally_connected(*pair)
        assert communication.get_total_counts() > 0
        assert torch.equal(y.full_tensor(), ut.locally_connected(x, w))

    # channels in groups; their batch needs nothing
    x, w = integers(3, 2, 4, 6), integers(4, 4, 6, 2, 3)
    for x_place, w_place in ((Shard(1), Shard(1)), (Shard(1), Shard(2)), (Replicate(), Shard(1))):
        y = ut.locally_connected(split(x, x_place), split(w, w_place), groups=2)
        assert torch.equal(y.full_tensor(), ut.locally_connected(x, w, groups=2))
    pair = split(x, Shard(0)), split(w, Replicate())
    with CommDebugMode() as communication:
        y = ut.locally_connected(*pair, groups=2)
    assert communication.get_total_counts() == 0, communication.get_comm_counts()
    assert torch.equal(y.full_tensor(), ut.locally_connected(x, w, groups=2))

    # an odd number of channels, an odd batch
    x, w = integers(5, 3, 5, 6), integers(6, 4, 7, 5, 3)
    for x_place, w_place in (
        (Shard(0), Replicate()), (Shard(1), Shard(2)), (Replicate(), Shard(1)),
    ):  # fmt: skip
        y = ut.locally_connected(split(x, x_place), split(w, w_place))
        assert torch.equal(y.full_tensor(), ut.locally_connected(x, w))

    # the same operands, results of other sizes
    x, w = integers(7, 2, 4, 4), integers(8, 4, 4, 3, 3)
    for more in (0, 1, 0):
        options = {"stride": 2, "output_padding": more}
        y = ut.locally_connected_transpose(split(x, Replicate()), split(w, Replicate()), **options)
        want = ut.locally_connected_transpose(x, w, **options)
        assert y.shape == want.shape == y.to_local().shape
        assert torch.equal(y.full_tensor(), want)

    # a mapped extent is an axis that all three have; conjugation stays with its operand
    x, w = integers(9, 4, 2, 3, 6), integers(10, 4, 4, 5, 3, 3)
    x, w = torch.complex(x, x.flip(0)), torch.complex(w, w.flip(-1))
    geometry, how = "n1 a1>b1 i6 k3", operators.MAPPED + operators.CONJUGATE[1]
    want = operators.product(operators.FORWARD, x, w, geometry, "", how)
    mapped = [ut.locally_connected(a, b.conj()) for a, b in zip(x, w, strict=True)]
    assert torch.equal(want, torch.stack(mapped))
    for dims in ((0, 0), (2, 3)):
        pair = [split(tensor, Shard(dim)) for tensor, dim in zip((x, w), dims, strict=True)]
        with CommDebugMode() as communication:
            y = operators.product(operators.FORWARD, *pair, geometry, "", how)
        assert communication.get_total_counts() == 0, communication.get_comm_counts()
        assert torch.equal(y.full_tensor(), want)


@pytest.mark.transformation(
    "DTensor, split by places, or by channels with groups",
    "supported",
    note="DTensor gathers what is split so",
)
def test_dtensor_gathered() -> None:
    run(_gathered)


def _layer(rank: int) -> None:
    """A layer whose weight and bias are split by C_out, and the next one by C_in: one sum at most.

    The first layer's y is split as the second layer's x must be, so all that the two exchange is
    the sum of the second's parts: tensor parallelism as Megatron has it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = init_device_mesh("cpu", (WORLD,))
    model = torch.nn.Sequential(
        ut.LocallyConnected2d(2, 4, 6, 3, padding=1),
        ut.LocallyConnected2d(4, 2, 6, 2, stride=2, bias=False),
    ).double()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(integers(seed, *parameter.shape))
    split = copy.deepcopy(model)
    for layer, name, place in ((0, "weight", 2), (0, "bias", 0), (1, "weight", 3)):
        parameter = getattr(split[layer], name)
        placed = distribute_tensor(parameter.detach(), mesh, [Shard(place)])
        setattr(split[layer], name, torch.nn.Parameter(placed))
    x = integers(50, 3, 2, 6, 6)
    want = model(x)
    (want**2).sum().backward()
    x = distribute_tensor(x, mesh, [Replicate()])
    with CommDebugMode() as communication:
        y = split(x)
    assert communication.get_total_counts() == 0, communication.get_comm_counts()
    y = y.redistribute(placements=[Replicate()])  # the one sum
    assert torch.equal(y.to_local(), want)
    with CommDebugMode() as communication:
        (y**2).sum().backward()
    gathers = [op for op in communication.get_comm_counts() if "gather" in str(op)]
    assert not gathers
    for got, parameter in zip(split.parameters(), model.parameters(), strict=True):
        assert isinstance(got.grad, type(got.data))
        assert torch.equal(got.grad.full_tensor(), parameter.grad)


@pytest.mark.transformation("DTensor, parameters of a layer", "supported")
def test_dtensor_layers() -> None:
    run(_layer)


def test_dtensor_is_not_loaded_for_those_without_it() -> None:
    script = """
import sys
import torch
import unshared.torch as ut
x, w = torch.ones(1, 1, 4), torch.ones(2, 1, 1, 3, requires_grad=True)
ut.locally_connected(x, w).sum().backward()
class Other(torch.Tensor): pass
ut.locally_connected(x.as_subclass(Other), w).sum().backward()
print("torch.distributed.tensor" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
