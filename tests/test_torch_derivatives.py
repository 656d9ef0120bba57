"""Derivatives of the PyTorch layer: every order, both modes, and what autograd does around them.

Truth is the definition of torch_cases.py differentiated by PyTorch itself, and the library's own
faces; on small integers, and between paths of the library on any data, equality is exact.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import unshared  # noqa: E402
from cases import FACES, OPERANDS, parse  # noqa: E402
from torch_cases import (  # noqa: E402
    LINE,
    LINES,
    Calls,
    definition,
    integers,
    normals,
    operands,
    ours,
    public,
    transposed,
)
from unshared.torch import LocallyConnected2d, LocallyConnectedTranspose2d  # noqa: E402

forward_ad = torch.autograd.forward_ad
grad = torch.autograd.grad
mark = pytest.mark.transformation
SMALL = "n2 a1>b2 i3x2 k2x1 s1x2 p1:0x0"  # for derivatives by differences, of complex numbers


def _recording(*tensors: Any) -> tuple[Any, ...]:
    return tuple(t.detach().clone().requires_grad_() for t in tensors)


def _library(face: str, line: str, first: Any, second: Any) -> Any:
    """The library's own face, without PyTorch's adapter."""
    case = parse(line)
    first, second = (t.detach().resolve_conj() for t in (first, second))
    return getattr(unshared, face)(first, second, *case.sizes(face), **case.options)


# --- against differences --------------------------------------------------------------------------
@mark("backward", "supported")
@mark("forward mode, dual tensors", "supported")
@mark("batched gradients (is_grads_batched)", "supported")
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("face", FACES)
def test_first_derivatives(face: str, line: str) -> None:
    assert torch.autograd.gradcheck(
        ours(face, line),
        _recording(*operands(face, line, make=normals)),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@mark("backward of backward", "supported")
@mark("forward over reverse", "supported")
@pytest.mark.parametrize("line", LINES[1:])
@pytest.mark.parametrize("face", FACES)
def test_second_derivatives(face: str, line: str) -> None:
    assert torch.autograd.gradgradcheck(
        ours(face, line),
        _recording(*operands(face, line, make=normals)),
        check_fwd_over_rev=True,
        check_batched_grad=True,
        fast_mode=line != LINE,
    )


@mark("complex numbers", "supported", note="PyTorch's convention; operands are not copied")
@pytest.mark.parametrize("how", [0, 2, 4, 6])
@pytest.mark.parametrize("face", FACES)
def test_complex_derivatives(face: str, how: int) -> None:
    function = ours(face, SMALL, how=how)
    inputs = _recording(*operands(face, SMALL, torch.complex128, normals))
    options = {"check_batched_grad": True}
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, **options)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True, **options)


@mark("backward", "supported")
@mark("backward of backward", "supported")
@pytest.mark.parametrize("line", LINES)
def test_public_functions(line: str) -> None:
    for face, function, place in (("forward", public, "y"), ("grad_input", transposed, "x")):
        first, second = operands(face, line, make=normals)
        inputs = _recording(first, second, normals(parse(line).shape(place)[1:], 9))
        check = {"fast_mode": True}
        assert torch.autograd.gradcheck(function(line), inputs, check_forward_ad=True, **check)
        assert torch.autograd.gradgradcheck(
            function(line), inputs, check_fwd_over_rev=True, **check
        )


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_layers(mode: str) -> None:
    layer = LocallyConnected2d(
        2, 2, (4, 3), (3, 2), padding=1, padding_mode=mode, dtype=torch.float64
    )
    (x,) = _recording(normals((2, 2, 4, 3)))
    for names in (("weight", "bias"), ()):  # with parameters as inputs, and as they are

        def call(x: Any, *parameters: Any, names: Any = names) -> Any:
            return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

        inputs = (x, *(getattr(layer, name) for name in names))
        assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, fast_mode=True)


def test_transposed_layer() -> None:
    layer = LocallyConnectedTranspose2d(
        2, 2, (3, 2), (3, 2), stride=2, padding=1, output_padding=1, groups=2, dtype=torch.float64
    )
    inputs = (*_recording(normals((2, 2, 3, 2))), layer.weight, layer.bias)

    def call(x: Any, weight: Any, bias: Any) -> Any:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, fast_mode=True)


# --- against the definition, exactly --------------------------------------------------------------
def _orders(function: Any, first: Any, second: Any, seeds: int = 3) -> list[Any]:
    """The result, and all derivatives of the first three orders along fixed integer cotangents.

    At every order both operands and the cotangent get theirs.
    """
    leaves = list(_recording(first, second))
    results = [function(*leaves)]
    everything = [results[0]]
    for seed in range(seeds):
        cotangents = [integers(r.shape, 20 + seed + j, r.dtype) for j, r in enumerate(results)]
        cotangents = [c.requires_grad_() for c in cotangents]
        found = grad(results, leaves, cotangents, create_graph=True, allow_unused=True)
        results = [g for g in found if g is not None and g.requires_grad]
        everything += [g for g in found if g is not None]
        leaves += cotangents
    return everything


@mark("backward of backward of backward", "supported")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("face", FACES)
def test_three_orders_are_those_of_the_definition(face: str, line: str, dtype: Any) -> None:
    inputs = operands(face, line, dtype)
    got, want = _orders(ours(face, line), *inputs), _orders(definition(face, line), *inputs)
    assert len(got) == len(want) > 8
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


@mark("complex numbers", "supported")
@pytest.mark.parametrize("how", [2, 4, 6])
@pytest.mark.parametrize("face", FACES)
def test_three_orders_of_conjugated_operands(face: str, how: int) -> None:
    define = definition(face, LINE)

    def defined(first: Any, second: Any) -> Any:
        return define(first.conj() if how & 2 else first, second.conj() if how & 4 else second)

    inputs = operands(face, LINE, torch.complex128)
    got, want = _orders(ours(face, LINE, how=how), *inputs), _orders(defined, *inputs)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("how", [0, 2, 4, 6])
@pytest.mark.parametrize("face", FACES)
def test_three_orders_of_a_mapped_operator(face: str, how: int) -> None:
    dtype = torch.complex128 if how else torch.float64
    parts = [operands(face, LINE, dtype, seed=seed) for seed in (0, 10, 20)]
    inputs = [torch.stack(operand) for operand in zip(*parts, strict=True)]
    define = definition(face, LINE)

    def defined(first: Any, second: Any) -> Any:
        first, second = first.conj() if how & 2 else first, second.conj() if how & 4 else second
        return torch.stack([define(*pair) for pair in zip(first, second, strict=True)])

    got, want = _orders(ours(face, LINE, how=how | 1), *inputs), _orders(defined, *inputs)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("line", LINES)
def test_one_trilinear_form(line: str, dtype: Any) -> None:
    case = parse(line)
    x, w, y = (integers(case.shape(seat), j, dtype) for j, seat in enumerate("xwy"))
    forms = [
        (y * ours("forward", line)(x, w)).sum(),
        (x * ours("grad_input", line)(y, w)).sum(),
        (w * ours("grad_weight", line)(x, y)).sum(),
    ]
    assert torch.equal(forms[0], forms[1]) and torch.equal(forms[0], forms[2])


# --- against the library, bit for bit -------------------------------------------------------------
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64],
    ids=str,
)
@pytest.mark.parametrize("line", LINES)
def test_gradients_are_the_faces_bit_for_bit(line: str, dtype: Any) -> None:
    x, w = _recording(*operands("forward", line, dtype, normals))
    dy = normals(parse(line).shape("y"), 7, dtype)
    y = public(line)(x, w)
    dx, dw = grad(y, (x, w), dy)
    assert torch.equal(y.detach(), _library("forward", line, x, w))
    assert torch.equal(dx, _library("grad_input", line, dy, w.conj()))
    assert torch.equal(dw, _library("grad_weight", line, x.conj(), dy))


@pytest.mark.parametrize("line", LINES)
def test_gradients_of_the_transposed_function_bit_for_bit(line: str) -> None:
    y, w = _recording(*operands("grad_input", line, make=normals))
    x = transposed(line)(y, w)
    dx = normals(x.shape, 7)
    dy, dw = grad(x, (y, w), dx)
    assert torch.equal(x.detach(), _library("grad_input", line, y, w))
    assert torch.equal(dy, _library("forward", line, dx, w))
    assert torch.equal(dw, _library("grad_weight", line, dx, y))


@pytest.mark.parametrize("shared", [True, False])
def test_gradient_of_bias(shared: bool) -> None:
    x, w = operands("forward", LINE)
    places = parse(LINE).shape("y")[1:]
    (bias,) = _recording(integers(places[:1] if shared else places, 5))
    y = public(LINE)(x, w, bias)
    dy = integers(y.shape, 6)
    (db,) = grad(y, bias, dy)
    assert torch.equal(db, dy.sum(0).sum((1, 2)) if shared else dy.sum(0))


def test_unbatched_gradients_are_those_of_a_batch_of_one() -> None:
    x, w = _recording(*operands("forward", "n1" + LINE[2:], make=normals))
    alone = grad(public(LINE)(x[0], w).square().sum(), (x, w))
    together = grad(public(LINE)(x, w).square().sum(), (x, w))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_empty_batch() -> None:
    x, w = _recording(*operands("forward", "n0" + LINE[2:]))
    y = public(LINE)(x, w)
    dx, dw = grad(y.sum(), (x, w))
    assert y.shape[0] == 0 and dx.shape == x.shape
    assert torch.equal(dw, torch.zeros_like(w))


# --- conjugation and negation without copies ------------------------------------------------------
@mark("lazily conjugated operands", "supported", note="without a copy")
@pytest.mark.parametrize("face", FACES)
def test_lazily_conjugated_operands_are_read_in_place(face: str) -> None:
    first, second = operands(face, LINE, torch.complex128)
    both = definition(face, LINE)(first.conj(), second.conj())
    one, other = first.conj(), second.conj()
    assert one.is_conj() and other.is_conj()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        got = ours(face, LINE)(one, other)
    names = {event.key for event in profile.key_averages()}
    assert torch.equal(got, both)
    assert f"unshared::{face}" in names
    assert not names & {"aten::clone", "aten::conj_physical", "aten::resolve_conj", "aten::copy_"}
    # and of one operand, with its bit undone by the flag
    assert torch.equal(ours(face, LINE, how=2)(one, other), definition(face, LINE)(first, other))


@mark("lazily conjugated operands", "supported")
@pytest.mark.parametrize("face", FACES)
def test_backward_conjugates_without_copies(face: str) -> None:
    first, second = _recording(*operands(face, LINE, torch.complex128))
    result = ours(face, LINE)(first.conj(), second)
    cotangent = integers(result.shape, 8, torch.complex128)
    with Calls() as calls:
        got = grad(result, (first, second), cotangent)
    assert len(calls.faces) == 2
    assert set(calls.others) <= {"_conj", "detach", "view", "alias"}
    want = grad(definition(face, LINE)(first.conj(), second), (first, second), cotangent)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_lazily_negated_operand() -> None:
    x, w = operands("forward", LINE)
    (z,) = _recording(torch.complex(x, x))
    negated = z.conj().imag
    assert negated.is_neg()
    y = public(LINE)(negated, w)
    assert torch.equal(y, definition("forward", LINE)(-x, w))
    (dz,) = grad(y.sum(), z)
    (want,) = grad(definition("forward", LINE)(z.conj().imag, w).sum(), z)
    assert torch.equal(dz, want)


def test_tensors_of_zeros_that_are_not_there() -> None:
    x, w = operands("forward", LINE)
    zeros = torch._efficientzerotensor(x.shape, dtype=x.dtype)
    assert not public(LINE)(zeros, w).any()
    with forward_ad.dual_level():
        y = public(LINE)(forward_ad.make_dual(x, zeros), forward_ad.make_dual(w, w))
        assert torch.equal(forward_ad.unpack_dual(y).tangent, public(LINE)(x, w))


# --- what is not wanted costs nothing -------------------------------------------------------------
@mark(
    "frozen weight or input", "supported", note="its gradient is not computed, nor its operand kept"
)
@pytest.mark.parametrize("face", FACES)
def test_frozen_operands_cost_nothing(face: str) -> None:
    gradients = {"x": "grad_input", "y": "forward", "w": "grad_weight"}
    seats = OPERANDS[face]
    for live in (0, 1):
        inputs = list(operands(face, LINE))
        inputs[live].requires_grad_()
        kept: list[Any] = []
        with Calls() as calls:
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, kept=kept: kept.append(t) or t, lambda t: t
            ):
                result = ours(face, LINE)(*inputs)
            result.sum().backward()
        assert calls.faces == [face, gradients[seats[live]]]
        assert [t.data_ptr() for t in kept] == [inputs[1 - live].data_ptr()]
    with Calls() as calls:
        assert not ours(face, LINE)(*operands(face, LINE)).requires_grad
    assert calls.faces == [face]


def test_frozen_layers() -> None:
    first = LocallyConnected2d(2, 3, 5, 2)
    second = LocallyConnected2d(3, 2, 4, 2)
    x = normals((2, 2, 5, 5), dtype=torch.float32)
    for frozen, expected in (
        (None, ["grad_input", "grad_weight", "grad_weight"]),
        (first, ["grad_weight"]),
        (second, ["grad_input", "grad_weight"]),
    ):
        first.requires_grad_(frozen is not first)
        second.requires_grad_(frozen is not second)
        with Calls() as calls:
            second(first(x)).sum().backward()
        assert sorted(calls.faces) == sorted(["forward", "forward", *expected])


@mark("no_grad and inference_mode", "supported")
def test_without_gradients() -> None:
    x, w = _recording(*operands("forward", LINE))
    want = definition("forward", LINE)(x, w)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = public(LINE)(x, w)
        assert not y.requires_grad and torch.equal(y, want)


# --- memory orders --------------------------------------------------------------------------------
def _layouts(tensor: Any) -> dict[str, Any]:
    """The same values in other memory."""
    turned = tensor.permute(*reversed(range(tensor.dim()))).contiguous()
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1, dtype=tensor.dtype)
    wide[..., 1::2] = tensor
    layouts = {
        "turned": turned.permute(*reversed(range(tensor.dim()))),
        "spread": wide[..., 1::2],
        "offset": torch.cat([tensor[:1], tensor])[1:],
        "channels last": tensor.movedim(1, -1).contiguous().movedim(-1, 1),
    }
    assert all(torch.equal(t, tensor) for t in layouts.values())
    return layouts


@mark("non-contiguous inputs and gradients", "supported", note="same bits, without a copy")
@pytest.mark.parametrize("line", LINES)
def test_any_memory_order_gives_the_same_bits(line: str) -> None:
    x, w = operands("forward", line, make=normals)
    dy = normals(parse(line).shape("y"), 7)

    def run(x: Any, w: Any, dy: Any) -> tuple[Any, ...]:
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        y = public(line)(x, w)
        with Calls() as calls:
            results = (y.detach(), *grad(y, (x, w), dy))
        assert not {"clone", "copy_", "contiguous"} & set(calls.others)
        return results

    want = run(x, w, dy)
    tried = [(other, w, dy) for other in _layouts(x).values()]
    tried += [(x, other, dy) for other in _layouts(w).values()]
    tried += [(x, w, other) for other in _layouts(dy).values()]
    for inputs in tried:
        for got, expected in zip(run(*inputs), want, strict=True):
            assert torch.equal(got, expected)


@mark("expanded inputs and gradients", "supported", note="same bits, without a copy")
def test_expanded_tensors() -> None:
    case = parse(LINE)
    x, w = operands("forward", LINE, make=normals)
    some = {
        "x": x[:1].expand_as(x),
        "x of one number": normals(()).expand_as(x),
        "w, shared by all places": w[:1, :1].expand_as(w),
        "dy of one number": normals(()).expand(case.shape("y")),
    }
    for name, expanded in some.items():
        a = (expanded if name[0] == "x" else x).detach().requires_grad_()
        b = (expanded if name[0] == "w" else w).detach().requires_grad_()
        dy = expanded if name[0] == "d" else normals(case.shape("y"), 7)
        y = public(LINE)(a, b)
        with Calls() as calls:
            got = (y.detach(), *grad(y, (a, b), dy))
        assert not {"clone", "copy_"} & set(calls.others), name
        c, d = (t.detach().contiguous().requires_grad_() for t in (a, b))
        y = public(LINE)(c, d)
        want = (y.detach(), *grad(y, (c, d), dy.contiguous()))
        assert all(torch.equal(p, q) for p, q in zip(got, want, strict=True)), name


def _order(tensor: Any) -> list[int]:
    """Dimensions from the slowest to the fastest; no extent here is 1."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


@mark("channels_last", "supported", note="y and dx in the order of x, dw in the order of w")
def test_memory_orders_are_kept() -> None:
    line = "n2 a3>b4 i5x6 k2x3"
    x, w = operands("forward", line, make=normals)
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    fastest_out = w.permute(0, 1, 3, 4, 5, 2).contiguous().permute(0, 1, 5, 2, 3, 4)
    fastest_out.requires_grad_()
    y = public(line)(last, fastest_out)
    dx, dw = grad(y.sum(), (last, fastest_out))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dx.is_contiguous(memory_format=torch.channels_last)
    assert _order(dw) == _order(fastest_out) == [0, 1, 3, 4, 5, 2]
    y = public(line)(x.requires_grad_(), fastest_out)
    assert y.is_contiguous()
    assert grad(y.sum(), x)[0].is_contiguous()
    # a gradient in the order of its parameter is taken over, not copied
    layer = LocallyConnected2d(3, 4, (5, 6), (2, 3), bias=False, dtype=torch.float64)
    layer.weight = torch.nn.Parameter(fastest_out.detach())
    with Calls() as calls:
        layer(last.detach()).sum().backward()
    assert layer.weight.grad.stride() == layer.weight.stride()
    assert "clone" not in calls.others
    # transposed, and without a batch
    x_of = transposed("n2 a3>b4 i5x6 k2x3")
    dy = normals((2, 4, 4, 4), 3).to(memory_format=torch.channels_last)
    assert x_of(dy, w).is_contiguous(memory_format=torch.channels_last)
    assert _order(public(line)(last[0], w)) == [1, 2, 0]


# --- graphs ---------------------------------------------------------------------------------------
@mark("retain_graph, and one tensor used twice", "supported")
def test_graph_used_twice() -> None:
    x, w = _recording(*operands("forward", LINE))
    y = public(LINE)(x, w)
    once = grad(y.sum(), (x, w), retain_graph=True)
    again = grad(y.sum(), (x, w))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    twice = grad((public(LINE)(x, w) + public(LINE)(x, w)).sum(), (x, w))
    assert all(torch.equal(2 * a, b) for a, b in zip(once, twice, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        grad(y.sum(), (x, w))


def test_operands_that_depend_on_each_other() -> None:
    case = parse(LINE)
    matrix = integers((int(np.prod(case.shape("w"))), int(np.prod(case.shape("x")))), 4)
    (x,) = _recording(operands("forward", LINE)[0])

    def tied(function: Any) -> list[Any]:
        y = function(x, (matrix @ x.flatten()).reshape(case.shape("w")))
        (first,) = grad(y.square().sum(), x, create_graph=True)
        return [y, first, *grad(first.sum(), x)]

    for got, want in zip(tied(public(LINE)), tied(definition("forward", LINE)), strict=True):
        assert torch.equal(got, want)


@mark(
    "batched gradients (is_grads_batched)",
    "supported",
    note="PyTorch runs the operators once for each; vmap of torch.func.vjp does not",
)
@pytest.mark.parametrize("face", FACES)
def test_batched_gradients(face: str) -> None:
    first, second = _recording(*operands(face, LINE))
    result = ours(face, LINE)(first, second)
    cotangents = integers((3, *result.shape), 6)
    got = grad(result, (first, second), cotangents, is_grads_batched=True, retain_graph=True)
    for j in range(3):
        want = grad(result, (first, second), cotangents[j], retain_graph=True)
        assert all(torch.equal(g[j], v) for g, v in zip(got, want, strict=True))


@mark("hooks", "supported", note="of tensors, of nodes, of saved tensors, after accumulation")
def test_hooks() -> None:
    x, w = _recording(*operands("forward", LINE))
    plain = grad(public(LINE)(x, w).sum(), (x, w))
    seen: list[str] = []
    x.register_hook(lambda g: 2 * g)
    w.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    y = public(LINE)(x, w)
    y.grad_fn.register_prehook(lambda gs: seen.append("before") or None)
    y.grad_fn.register_hook(lambda new, old: seen.append("after") or None)
    y.sum().backward()
    assert torch.equal(x.grad, 2 * plain[0]) and torch.equal(w.grad, plain[1])
    assert seen == ["before", "after", "accumulated"]
    with torch.autograd.graph.save_on_cpu():
        y = public(LINE)(x, w)
    assert torch.equal(grad(y.sum(), w)[0], plain[1])


@mark("activation checkpointing", "supported", note="reentrant or not")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    x, w = _recording(*operands("forward", LINE, make=normals))
    want = grad(public(LINE)(x, w).square().sum(), (x, w))
    with Calls() as calls:
        y = torch.utils.checkpoint.checkpoint(public(LINE), x, w, use_reentrant=reentrant)
        y.square().sum().backward()
    assert sorted(calls.faces) == ["forward", "forward", "grad_input", "grad_weight"]
    assert torch.equal(x.grad, want[0]) and torch.equal(w.grad, want[1])


@mark("use_deterministic_algorithms", "supported", note="nothing changes: the bits never vary")
def test_deterministic_mode() -> None:
    x, w = _recording(*operands("forward", LINE, make=normals))
    want = grad(public(LINE)(x, w).square().sum(), (x, w))
    torch.use_deterministic_algorithms(True)
    try:
        got = grad(public(LINE)(x, w).square().sum(), (x, w))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@mark("detect_anomaly", "supported")
def test_anomalies() -> None:
    x, w = _recording(*operands("forward", LINE))
    want = grad(public(LINE)(x, w).sum(), x)
    with torch.autograd.detect_anomaly(check_nan=True):
        assert torch.equal(grad(public(LINE)(x, w).sum(), x)[0], want[0])
        y = public(LINE)(x, w)
        with pytest.raises(RuntimeError, match="nan"):
            grad(y, x, torch.full_like(y, float("nan")))


@mark("operand changed in place before backward", "refused")
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("changed", [0, 1])
def test_saved_tensors_are_watched(face: str, changed: int) -> None:
    leaves = _recording(*operands(face, LINE))
    inputs = [leaf.clone() for leaf in leaves]
    result = ours(face, LINE)(*inputs)
    inputs[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(result.sum(), leaves[1 - changed])


def test_results_may_be_changed_in_place() -> None:
    x, w = _recording(*operands("forward", LINE))
    y = public(LINE)(x, w, integers(parse(LINE).shape("y")[1:], 3))
    want = grad((3 * y).sum(), (x, w), retain_graph=True)
    got = grad(y.mul_(3).sum(), (x, w))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    frozen = operands("forward", LINE)[1]
    kept = x.detach().clone()
    y = public(LINE)(kept, w.detach().requires_grad_(False) * 1)
    assert not y.requires_grad
    live = x.clone()
    y = public(LINE)(live, frozen)
    live.add_(1)  # with a frozen weight, x is not needed any more
    assert torch.equal(grad(y.sum(), x)[0], grad(public(LINE)(x, frozen).sum(), x)[0])


def test_threads_of_python() -> None:
    x, w = operands("forward", LINE, make=normals)
    want = grad(public(LINE)(x.requires_grad_(), w).square().sum(), x)[0]
    found: list[bool] = []

    def work() -> None:
        for _ in range(20):
            mine = x.detach().clone().requires_grad_()
            public(LINE)(mine, w).square().sum().backward()
            found.append(torch.equal(mine.grad, want))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and all(found)


# --- forward mode ---------------------------------------------------------------------------------
@mark("forward mode, dual tensors", "supported")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("face", FACES)
def test_dual_tensors(face: str, dtype: Any) -> None:
    first, second = operands(face, LINE, dtype)
    dfirst, dsecond = operands(face, LINE, dtype, seed=10)
    define = definition(face, LINE)
    parts = define(dfirst, second), define(first, dsecond)
    with forward_ad.dual_level():
        one = forward_ad.make_dual(first, dfirst)
        other = forward_ad.make_dual(second, dsecond)
        for a, b, want, calls_expected in (
            (one, second, parts[0], 2),
            (first, other, parts[1], 2),
            (one, other, parts[0] + parts[1], 3),
        ):
            with Calls() as calls:
                result = ours(face, LINE)(a, b)
            assert calls.faces == [face] * calls_expected
            primal, tangent = forward_ad.unpack_dual(result)
            assert torch.equal(primal, define(first, second)) and torch.equal(tangent, want)
            # tangents do not need gradients to be recorded
            with torch.no_grad():
                assert torch.equal(forward_ad.unpack_dual(ours(face, LINE)(a, b)).tangent, want)
        assert forward_ad.unpack_dual(ours(face, LINE)(first, second)).tangent is None


@mark("forward over reverse", "supported")
@mark("reverse over forward", "supported")
@pytest.mark.parametrize("face", FACES)
def test_modes_of_each_other(face: str) -> None:
    first, second = _recording(*operands(face, LINE))
    dfirst, dsecond = operands(face, LINE, seed=10)

    def forward_over_reverse(function: Any) -> list[Any]:
        with forward_ad.dual_level():
            one = forward_ad.make_dual(first, dfirst)
            other = forward_ad.make_dual(second, dsecond)
            found = grad(function(one, other).square().sum(), (one, other), create_graph=True)
            return [forward_ad.unpack_dual(g).tangent.detach() for g in found]

    def reverse_over_forward(function: Any) -> list[Any]:
        with forward_ad.dual_level():
            one = forward_ad.make_dual(first, dfirst)
            other = forward_ad.make_dual(second, dsecond)
            tangent = forward_ad.unpack_dual(function(one, other).square().sum()).tangent
        return list(grad(tangent, (first, second)))

    for mode in (forward_over_reverse, reverse_over_forward):
        for got, want in zip(mode(ours(face, LINE)), mode(definition(face, LINE)), strict=True):
            assert torch.equal(got, want)


@mark("torch.autograd.functional", "supported", note="jacobian, hessian, hvp, vhp, jvp, vjp")
@pytest.mark.parametrize("face", FACES)
def test_autograd_functional(face: str) -> None:
    functional = torch.autograd.functional
    first, second = operands(face, LINE)
    direction = operands(face, LINE, seed=10)[0]

    def everything(function: Any) -> list[Any]:
        def cost(v: Any) -> Any:
            return function(v, second).square().sum()

        def linear(v: Any) -> Any:
            return function(v, second)

        return [
            functional.jacobian(linear, first),
            functional.jacobian(linear, first, vectorize=True),
            functional.jacobian(linear, first, vectorize=True, strategy="forward-mode"),
            functional.hessian(cost, first, vectorize=True),
            functional.hessian(cost, first, vectorize=True, outer_jacobian_strategy="forward-mode"),
            functional.hvp(cost, first, direction)[1],
            functional.vhp(cost, first, direction)[1],
            functional.jvp(linear, first, direction)[1],  # by reverse over reverse
            functional.vjp(linear, first, function(direction, second))[1],
        ]

    got, want = everything(ours(face, LINE)), everything(definition(face, LINE))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
