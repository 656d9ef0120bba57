"""locally_connected and its transpose: values, options, sizes, memory, and calls to be refused.

Values are compared with the door for NumPy arrays (bits, on real data), with the oracle and with
torch's own convolutions with one kernel at every place (exact, on integers).
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import unshared  # noqa: E402
import unshared.torch as ut  # noqa: E402
from arrays import DTYPES, FLOAT32, FLOAT64, assert_same_bits, cast, integers, reals  # noqa: E402
from cases import CASES, Case, exact, library, parse  # noqa: E402
from tensors import numpy, tensor  # noqa: E402
from unshared import _core  # noqa: E402

F = torch.nn.functional
# The functions have no input dilation; that is what the transposed one is for.
PLAIN = [case for case in CASES if set(case.e) == {1} and case.work() < 4e6]
SMALL = [
    parse("n3 a4>b6 g2 i9 k3 s2 p1:2 d2"),
    parse("n3 a4>b6 g2 i7x8 k3x2 s2x1 p1x0:2 d1x2"),
    parse("n2 a4>b2 g2 i4x5x6 k2x3x1 s2x1x2 p1x0:1x0 d1x2x1"),
]
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def options(case: Case) -> dict[str, Any]:
    return {"stride": case.s, "padding": case.p, "dilation": case.d, "groups": case.g}


def output_padding(case: Case) -> tuple[int, ...]:
    """What is missing to case.i in the sizes of conv_transpose."""
    return tuple(
        i - ((o - 1) * s - low - high + (k - 1) * d + 1)
        for i, o, k, s, (low, high), d in zip(
            case.i, case.out, case.k, case.s, case.p, case.d, strict=True
        )
    )


# --- values ---------------------------------------------------------------------------------------


def test_the_cases_are_many() -> None:
    assert len(PLAIN) > 50
    assert {len(case.i) for case in PLAIN} == {1, 2, 3}


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_values(case: Case, rng: np.random.Generator) -> None:
    x, w = (reals(rng, case.shape(seat), FLOAT32) for seat in "xw")
    y = ut.locally_connected(tensor(x), tensor(w), **options(case))
    assert_same_bits(numpy(y), library("forward", case, x, w))
    x, w = (integers(rng, case.shape(seat), FLOAT64, case.terms("forward")) for seat in "xw")
    y = ut.locally_connected(tensor(x), tensor(w), **options(case))
    assert_same_bits(numpy(y), exact("forward", case, x, w))


@pytest.mark.parametrize("case", [c for c in PLAIN if 0 not in (*c.i, c.a, c.b)], ids=str)
def test_values_transposed(case: Case, rng: np.random.Generator) -> None:
    more = output_padding(case)
    x, w = (reals(rng, case.shape(seat), FLOAT32) for seat in "yw")
    y = ut.locally_connected_transpose(tensor(x), tensor(w), output_padding=more, **options(case))
    assert_same_bits(numpy(y), library("grad_input", case, x, w))
    x, w = (integers(rng, case.shape(seat), FLOAT64, case.terms("grad_input")) for seat in "yw")
    y = ut.locally_connected_transpose(tensor(x), tensor(w), output_padding=more, **options(case))
    assert_same_bits(numpy(y), exact("grad_input", case, x, w))


@EACH_DTYPE
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_dtypes(case: Case, dtype: np.dtype, rng: np.random.Generator) -> None:
    """Results in the operands' own type, exact; backward gives both gradients."""
    for face, seats in (("forward", "xw"), ("grad_input", "yw")):
        arrays = [integers(rng, case.shape(seat), dtype, case.terms(face)) for seat in seats]
        pair = [tensor(array).requires_grad_() for array in arrays]
        if face == "forward":
            y = ut.locally_connected(*pair, **options(case))
        else:
            more = output_padding(case)
            y = ut.locally_connected_transpose(*pair, output_padding=more, **options(case))
        assert y.dtype == pair[0].dtype
        assert_same_bits(numpy(y), cast(exact(face, case, *arrays), dtype), face)
        y.backward(torch.ones_like(y))
        assert [p.grad.shape for p in pair] == [p.shape for p in pair]
        assert [p.grad.dtype for p in pair] == [p.dtype for p in pair]


def _shared(axes: int) -> list[dict[str, Any]]:
    """Options of torch's convolutions, every value of each beside the others."""
    found: list[dict[str, Any]] = [{}]
    found += [{"stride": s, "padding": p} for s in (2, 3) for p in (0, 1, 2)]
    found += [{"dilation": 2, "padding": 1}, {"stride": 2, "dilation": 3, "padding": 3}]
    found += [{"groups": 2, "stride": 2, "padding": 1}, {"groups": 4, "padding": 2}]
    found += [
        {
            "stride": tuple(range(1, axes + 1)),
            "padding": tuple(range(axes)),
            "dilation": tuple(range(axes, 0, -1)),
        }
    ]
    return found


def _ints(*shape: int) -> Any:
    """Small integers in float64: all sums exact."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-9, 10, shape, generator=generator).double()


SIZES = {1: ((9,), (4,)), 2: ((9, 8), (4, 3)), 3: ((8, 7, 7), (2, 2, 3))}


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_kernel_everywhere_is_the_convolution(axes: int) -> None:
    size, kernel = SIZES[axes]
    convolution = getattr(F, f"conv{axes}d")
    words: list[dict[str, Any]] = [
        {"padding": "valid", "stride": 2}, {"padding": "same"}, {"padding": "same", "dilation": 2},
    ]  # fmt: skip
    for choice in _shared(axes) + words:
        x, k, b = _ints(3, 4, *size), _ints(8, 4 // choice.get("groups", 1), *kernel), _ints(8)
        want = convolution(x, k, b, **choice)
        w = k.expand(*want.shape[2:], *k.shape)
        places = b.reshape(-1, *[1] * axes).expand(want.shape[1:])
        for bias in (b, places):
            assert torch.equal(ut.locally_connected(x, w, bias, **choice), want), choice
        none = convolution(x, k, None, **choice)
        assert torch.equal(ut.locally_connected(x, w.contiguous(), **choice), none), choice


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_kernel_everywhere_is_the_transposed_convolution(axes: int) -> None:
    size, kernel = SIZES[axes]
    convolution = getattr(F, f"conv_transpose{axes}d")
    grown = [{"stride": 3, "output_padding": more} for more in (0, 1, (2,) * axes)]
    for choice in _shared(axes) + grown:
        groups = choice.get("groups", 1)
        x, k, b = _ints(3, 4, *size), _ints(4, 8 // groups, *kernel), _ints(8)
        want = convolution(x, k, b, **choice)
        w = k.expand(*size, *k.shape)
        places = b.reshape(-1, *[1] * axes).expand(want.shape[1:])
        for bias in (b, places):
            assert torch.equal(ut.locally_connected_transpose(x, w, bias, **choice), want), choice
        none = convolution(x, k, None, **choice)
        assert torch.equal(ut.locally_connected_transpose(x, w, **choice), none), choice


def test_arguments_by_position_are_those_of_torch() -> None:
    """stride, padding, dilation, groups; or stride, padding, output_padding, groups, dilation."""
    x, k, b = _ints(2, 4, 9, 8), _ints(6, 2, 3, 2), _ints(6)
    want = F.conv2d(x, k, b, 2, 1, 2, 2)
    w = k.expand(*want.shape[2:], *k.shape)
    assert torch.equal(ut.locally_connected(x, w, b, 2, 1, 2, 2), want)
    k = _ints(4, 3, 3, 2)
    want = F.conv_transpose2d(x, k, b, 3, 1, 2, 2, 2)
    w = k.expand(9, 8, *k.shape)
    assert torch.equal(ut.locally_connected_transpose(x, w, b, 3, 1, 2, 2, 2), want)


def test_padding_forms() -> None:
    """An int, one per axis, pairs; pairs pad as F.pad does, and crop a transposed result."""
    x = _ints(2, 3, 6, 5)
    for padding, pad in (
        (1, (1, 1, 1, 1)),
        ((2, 0), (0, 0, 2, 2)),
        ([1, 2], (2, 2, 1, 1)),
        (((0, 2), (1, 0)), (1, 0, 0, 2)),
        (((3, 0), 1), (1, 1, 3, 0)),
    ):
        padded = F.pad(x, pad)
        w = _ints(padded.shape[2] - 2, padded.shape[3] - 1, 4, 3, 3, 2)
        want = ut.locally_connected(padded, w)
        assert torch.equal(ut.locally_connected(x, w, padding=padding), want), padding
        v = _ints(6, 5, 3, 4, 5, 4)
        whole = ut.locally_connected_transpose(x, v)
        left, right, top, bottom = pad
        cropped = whole[:, :, top : whole.shape[2] - bottom, left : whole.shape[3] - right]
        assert torch.equal(ut.locally_connected_transpose(x, v, padding=padding), cropped), padding
    w = _ints(3, 3, 4, 3, 3, 2)  # out = ceil(in / stride)
    want = ut.locally_connected(x, w, stride=2, padding=((0, 1), (0, 1)))
    assert torch.equal(ut.locally_connected(x, w, stride=2, padding="same"), want)


def test_a_bias_leaves_the_operands_alone(rng: np.random.Generator) -> None:
    x, w = _ints(2, 3, 6), _ints(4, 5, 3, 3)
    kept = [t.clone() for t in (x, w)]
    b = _ints(5, 4)
    without = ut.locally_connected(x, w)
    assert torch.equal(ut.locally_connected(x, w, b), without + b)
    assert torch.equal(ut.locally_connected(x, w, b[:, 0]), without + b[:, :1])
    assert all(torch.equal(t, k) for t, k in zip((x, w), kept, strict=True))
    b.requires_grad_()
    ut.locally_connected(x, w, b).sum().backward()
    assert torch.equal(b.grad, torch.full((5, 4), 2.0, dtype=b.dtype))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_unbatched(axes: int, transposed: bool) -> None:
    function = ut.locally_connected_transpose if transposed else ut.locally_connected
    x = _ints(3, *[5] * axes)
    w = _ints(*[5 if transposed else 3] * axes, 3 if transposed else 4, 3, *[3] * axes)
    b = _ints(3 if transposed else 4)
    y = function(x, w, b)
    assert y.dim() == axes + 1
    assert torch.equal(y, function(x[None], w, b)[0])


def test_an_empty_batch() -> None:
    x = torch.ones(0, 3, 5, requires_grad=True)
    w = torch.ones(3, 4, 3, 3, requires_grad=True)
    y = ut.locally_connected(x, w, torch.ones(4, 3))
    assert y.shape == (0, 4, 3)
    y.sum().backward()
    assert not w.grad.any()
    assert ut.locally_connected_transpose(torch.ones(0, 4, 3), w.detach()).shape == (0, 3, 5)


# --- memory ---------------------------------------------------------------------------------------


def test_channels_last_stays(rng: np.random.Generator) -> None:
    for form, shape, w_shape in (
        (torch.channels_last, (2, 3, 6, 5), (4, 3, 4, 3, 3, 3)),
        (torch.channels_last_3d, (2, 3, 4, 6, 5), (2, 4, 3, 4, 3, 3, 3, 3)),
    ):
        x, w = _ints(*shape), _ints(*w_shape)
        last = x.contiguous(memory_format=form).requires_grad_()
        y = ut.locally_connected(last, w, _ints(4))
        assert y.is_contiguous(memory_format=form) and not y.is_contiguous()
        assert torch.equal(y, ut.locally_connected(x, w, _ints(4)))
        y.backward(_ints(*y.shape))  # row-major, as it comes
        assert last.grad.is_contiguous(memory_format=form)
        back = ut.locally_connected_transpose(y.detach(), w)
        assert back.is_contiguous(memory_format=form)


def test_any_strides_are_read_in_place() -> None:
    """Sliced, transposed, expanded operands: the values count, not how they lie."""
    x, w = _ints(2, 3, 6, 5), _ints(4, 3, 4, 3, 3, 3)
    want = ut.locally_connected(x, w)
    wide = torch.full((2, 3, 6, 10), float("nan"), dtype=x.dtype)
    wide[..., ::2] = x
    turned = w.permute(*reversed(range(6))).contiguous().permute(*reversed(range(6)))
    for a, b in itertools.product((x, wide[..., ::2], x.mT.contiguous().mT), (w, turned)):
        assert torch.equal(ut.locally_connected(a, b), want)
    same = x[:1].expand(4, -1, -1, -1)
    assert torch.equal(ut.locally_connected(same, w), ut.locally_connected(same.clone(), w))


# --- calls to be refused --------------------------------------------------------------------------

X, W, B = torch.ones(2, 4, 8), torch.ones(6, 6, 4, 3), torch.ones(6, 6)
HUGE = (2**31, 2**63 - 1, 2**63, 10**30)

Row = tuple[str, type[Exception], str, Callable[[], Any]]


def _rows() -> list[Row]:
    def call(*args: Any, **choice: Any) -> Callable[[], Any]:
        return lambda: ut.locally_connected(*args, **choice)

    def transposed(*args: Any, **choice: Any) -> Callable[[], Any]:
        return lambda: ut.locally_connected_transpose(*args, **choice)

    rows: list[Row] = []
    for wrong in ([1.0], None, X.numpy(), 1.0):
        name = type(wrong).__name__
        rows.append((f"x {name}", TypeError, "x", call(wrong, W)))
        rows.append((f"w {name}", TypeError, "w", call(X, wrong)))
        rows.append((f"transposed x {name}", TypeError, "x", transposed(wrong, W)))
        if wrong is not None:
            rows.append((f"bias {name}", TypeError, "bias", call(X, W, wrong)))
    for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn):
        rows.append((f"all {dtype}", TypeError, "x", call(X.to(dtype), W.to(dtype))))
    for dtype in (torch.float64, torch.float16, torch.complex64):
        rows.append((f"x {dtype}", TypeError, "w", call(X.to(dtype), W)))
        rows.append((f"w {dtype}", TypeError, "w", call(X, W.to(dtype))))
        rows.append((f"bias {dtype}", TypeError, "bias", call(X, W, B.to(dtype))))
    rows += [
        ("x of 1", ValueError, "x", call(X[0, 0], W)),
        ("x of 4", ValueError, "x", call(X[None], W)),
        ("w of 3", ValueError, "w", call(X, W[0])),
        ("w of 5", ValueError, "w", call(X, W[None])),
        ("x too small", ValueError, "w", call(X[..., :7], W)),
        ("kernel above input", ValueError, "", call(X[..., :2], W)),
        ("C_in", ValueError, "w", call(X[:, :3], W)),
        ("bias C_out", ValueError, "bias", call(X, W, B[:5])),
        ("bias places", ValueError, "bias", call(X, W, B[:, :5])),
        ("bias of 1 x", ValueError, "bias", call(X, W, B[None])),
        ("bias ()", ValueError, "bias", call(X, W, B[0, 0])),
        ("groups and C_in", ValueError, "groups", call(X[:, :3], W, groups=2)),
        ("groups and C_out", ValueError, "groups", call(X, W, groups=4)),
        ("a word", TypeError, "padding", call(X, W, padding="full")),
        ("a triple", ValueError, "padding", call(X, W, padding=((1, 2, 3),))),
        ("a negative pair", ValueError, "padding", call(X, W, padding=((1, -1),))),
        ("a word, transposed", ValueError, "padding", transposed(B[None], W, padding="same")),
        ("output_padding 1", ValueError, "output_padding",
         transposed(B[None], W, output_padding=1)),
        ("output_padding -1", ValueError, "output_padding",
         transposed(B[None], W, stride=2, output_padding=-1)),
        ("output_padding 0.0", TypeError, "output_padding",
         transposed(B[None], W, output_padding=0.0)),
        ("nothing left", ValueError, "padding", transposed(B[None], W, padding=4)),
        ("transposed C_in", ValueError, "w", transposed(B[None, :5], W)),
        ("transposed size", ValueError, "w", transposed(B[None, :, :5], W)),
        ("meta x", ValueError, "w", call(X.to("meta"), W)),
        ("meta w", ValueError, "w", call(X, W.to("meta"))),
        ("meta w, transposed", ValueError, "w", transposed(B[None], W.to("meta"))),
        ("meta bias", ValueError, "bias", call(X, W, B.to("meta"))),
        ("meta, two dtypes", TypeError, "w", call(X.to("meta"), W.to("meta").double())),
    ]  # fmt: skip
    for name in ("stride", "dilation", "padding", "groups"):
        for number in (*((0,) if name != "padding" else ()), -1, *HUGE):
            rows.append((f"{name} {number}", ValueError, name, call(X, W, **{name: number})))
        for wrong in (1.5, 1.0, float("nan"), True, None, "a", object()):
            text = type(wrong).__name__ if type(wrong) is object else repr(wrong)
            rows.append((f"{name} {text}", TypeError, name, call(X, W, **{name: wrong})))
        if name != "groups":
            for several in ((), (1, 1)):
                rows.append((f"{name} {several}", ValueError, name, call(X, W, **{name: several})))
    return rows


ROWS = _rows()


@pytest.mark.parametrize("gradient", [False, True], ids=["", "gradient"])
@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_refused(row: Row, gradient: bool) -> None:
    _, kind, argument, call = row
    try:
        W.requires_grad_(gradient)
        with pytest.raises(kind) as caught:
            call()
    finally:
        W.requires_grad_(False)
    error = caught.value
    assert isinstance(error, unshared.Error)
    assert error.operation and error.expected and error.found
    assert argument in ("", error.argument)
    text = str(error)
    assert all(part in text for part in (error.argument, error.expected, error.found))
    assert torch.equal(ut.locally_connected(X, W), torch.full((2, 6, 6), 12.0))


def test_refused_by_python_itself() -> None:
    with pytest.raises(TypeError, match="strides"):
        ut.locally_connected(X, W, strides=1)
    with pytest.raises(TypeError):
        ut.locally_connected(X, W, stride={})
    with pytest.raises(NotImplementedError):
        ut.locally_connected(X.to_sparse(), W)


@pytest.mark.gpu
def test_two_devices_are_refused() -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    for pair in ((X.cuda(), W), (X, W.cuda())):
        with pytest.raises(ValueError) as caught:
            ut.locally_connected(*pair)
        assert isinstance(caught.value, unshared.Error)


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "bits"), [("tf32", 32), ("3xtf32", 64), ("fast", 96)])
def test_precision_is_that_of_the_gradients(
    monkeypatch: pytest.MonkeyPatch, word: str, bits: int
) -> None:
    """Every call of functions, layers and derivatives carries it; on the CPU the core refuses."""
    seen = []
    apply = _core.apply

    def watched(*args: Any) -> Any:
        seen.append(args[6] & 96)
        return apply(*args[:6], args[6] & ~96)

    layer = ut.LocallyConnected1d(4, 2, 8, 3)
    layer.precision = word
    back = ut.LocallyConnectedTranspose1d(W.shape[1], 3, 6, 3)
    with monkeypatch.context() as patch:
        patch.setattr(_core, "apply", watched)
        for function in (
            lambda x, w: ut.locally_connected(x, w, precision=word),
            lambda x, w: layer(x) * w.sum(),
            lambda x, w: ut.locally_connected_transpose(
                ut.locally_connected(x, w, precision=word), back.weight, precision=word
            ),
        ):
            x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
            (dx,) = torch.autograd.grad((function(x, w) ** 2).sum(), x, create_graph=True)
            (dx**2).sum().backward()
            torch.func.vmap(function, (0, None))(X[None], W)
        assert len(seen) > 15 and set(seen) == {bits}
        ut.locally_connected(X, W, precision="ieee")
        assert seen[-1] == 0
    for refused in (lambda: ut.locally_connected(X, W, precision=word), lambda: layer(X)):
        with pytest.raises(NotImplementedError) as caught:
            refused()
        assert isinstance(caught.value, unshared.Error) and caught.value.argument == "precision"
    with pytest.raises(unshared.ArgumentValueError, match="precision"):
        ut.locally_connected(X, W, precision="half")


# --- threads, and the end of the process ----------------------------------------------------------


def test_threads_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    apply = _core.apply

    def watched(*args: Any) -> Any:
        seen.append(args[5])
        return apply(*args)

    monkeypatch.setattr(_core, "apply", watched)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 2):
            torch.set_num_threads(threads)
            seen.clear()
            x = X.clone().requires_grad_()
            ut.locally_connected(x, W.clone().requires_grad_()).sum().backward()
            assert seen == [threads] * 3, "forward, grad_input and grad_weight"
    finally:
        torch.set_num_threads(before)


def _python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_threads_that_there_are() -> None:
    """One call starts as many threads as torch is set to, and none for one thread."""
    script = """
import os, torch, unshared.torch as ut
x, w = torch.ones(8, 4, 32), torch.ones(30, 16, 4, 3)
def started(threads):
    torch.set_num_threads(threads)
    before = set(os.listdir("/proc/self/task"))  # one that torch has joined may linger there
    ut.locally_connected(x, w)
    return len(set(os.listdir("/proc/self/task")) - before)
print(started(1), started(3), unshared.build_info()["openmp"])
"""
    done = _python(
        script.replace("import os,", "import unshared, os,"), UNSHARED_WORK_PER_THREAD="0"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["0", "2"], done.stdout


def test_nothing_is_left_over_at_exit() -> None:
    """nanobind tells of what leaked; PyTorch keeps the operators for longer than Python lives."""
    script = """
import torch, unshared.torch as ut
layer = ut.LocallyConnected2d(2, 3, 6, 3, padding=1, padding_mode="reflect")
up = ut.LocallyConnectedTranspose2d(3, 1, 6, 2, stride=2)
x = torch.ones(2, 2, 6, 6, requires_grad=True)
up(layer(x)).sum().backward()
torch.func.grad(lambda x: ut.locally_connected(x, torch.ones(4, 1, 1, 3)).sum())(torch.ones(1, 6))
try:
    layer(torch.ones(1))
except ValueError as error:
    kept = error
"""
    done = _python(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
