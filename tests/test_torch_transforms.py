"""torch.func over the PyTorch layer: every transform alone and of each other, vmap without a loop.

Truth is the same transform of the definition of torch_cases.py, on small integers, exactly; for
per-sample gradients a loop, bit for bit on any data. What PyTorch cannot do is refused.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.func import (  # noqa: E402
    functional_call,
    functionalize,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

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
from unshared.torch import LocallyConnected2d  # noqa: E402

mark = pytest.mark.transformation
forward_ad = torch.autograd.forward_ad
TINY = "n2 a1>b2 i3x2 k2x1 s1x2 p1:0x0"


def _leaves(result: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(result)


def _assert_equal(got: Any, want: Any) -> None:
    one, other = _leaves(got), _leaves(want)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a, b)
    assert any(b.count_nonzero() for b in other), "nothing but zeros shows nothing"


# --- derivatives ----------------------------------------------------------------------------------
@mark("torch.func.grad, vjp, jacrev", "supported")
@mark("torch.func.jvp, jacfwd, linearize", "supported")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("face", FACES)
def test_first_order(face: str, line: str, dtype: Any) -> None:
    primals = operands(face, line, dtype)
    tangents = operands(face, line, dtype, seed=10)

    def everything(function: Any) -> list[Any]:
        result, pullback = vjp(function, *primals)
        cotangent = integers(result.shape, 20, dtype)
        cost = lambda *v: (function(*v) * cotangent).real.sum()  # noqa: E731
        found = [
            result,
            pullback(cotangent),
            pullback(2 * cotangent),
            grad(cost, (0, 1))(*primals),
            grad_and_value(cost, 1)(*primals),
            jvp(function, primals, tangents),
            jvp(lambda v: function(v, primals[1]), primals[:1], tangents[:1]),
            jvp(lambda v: function(primals[0], v), primals[1:], tangents[1:]),
        ]
        if not dtype.is_complex:  # PyTorch's own limits
            _, pushforward = linearize(function, *primals)
            found += [pushforward(*tangents), pushforward(*primals)]
            found += [jacrev(function, (0, 1))(*primals), jacfwd(function, (0, 1))(*primals)]
        return found

    _assert_equal(everything(ours(face, line)), everything(definition(face, line)))


@mark("torch.func.hessian, jacfwd of jacrev", "supported")
@mark("torch.func.jacrev of jacfwd, grad of jvp", "supported")
@mark("torch.func.jacrev of jacrev, grad of grad", "supported")
@mark("torch.func.jvp of grad", "supported")
@pytest.mark.parametrize("line", [TINY, LINES[0]])
@pytest.mark.parametrize("face", FACES)
def test_second_order(face: str, line: str) -> None:
    primals = operands(face, line)
    tangents = operands(face, line, seed=10)

    def everything(function: Any) -> list[Any]:
        def cost(*v: Any) -> Any:
            return function(*v).square().sum()

        def slope(*v: Any) -> Any:
            return jvp(cost, v, tangents)[1]

        def steepness(*v: Any) -> Any:
            return sum(g.square().sum() for g in grad(cost, (0, 1))(*v))

        return [
            hessian(cost, (0, 1))(*primals),
            jacrev(jacrev(cost, 1), 0)(*primals),
            jacrev(jacfwd(function, 1), 0)(*primals),
            jacfwd(jacrev(function, 0), 1)(*primals),
            grad(slope, (0, 1))(*primals),
            grad(steepness, (0, 1))(*primals),
            jvp(grad(cost, (0, 1)), primals, tangents),
            jvp(grad(steepness, (0, 1)), primals, tangents),
            linearize(grad(cost, (0, 1)), *primals)[1](*tangents),
        ]

    _assert_equal(everything(ours(face, line)), everything(definition(face, line)))


@mark("torch.func.grad of grad of grad", "supported")
def test_third_order_of_the_functions() -> None:
    for face, function in (("forward", public), ("grad_input", transposed)):
        primals = operands(face, TINY)

        def everything(function: Any, primals: Any = primals) -> Any:
            total = lambda *v: function(*v).pow(3).sum()  # noqa: E731
            for _ in range(2):
                total = lambda *v, f=total: sum(g.sum() for g in grad(f, (0, 1))(*v))  # noqa: E731
            return grad(total, (0, 1))(*primals)

        _assert_equal(everything(function(TINY)), everything(definition(face, TINY)))


@mark("torch.func.jvp of jvp, jacfwd of jacfwd", "refused", note="PyTorch would lose tangents")
@pytest.mark.parametrize("face", FACES)
def test_nested_forward_mode_is_refused(face: str) -> None:
    first, second = operands(face, LINE)
    function = ours(face, LINE)
    alone = lambda v: function(v, second)  # noqa: E731
    for attempt in (
        lambda: jvp(lambda v: jvp(alone, (v,), (first,))[1], (first,), (first,)),
        lambda: jvp(
            lambda w: jvp(lambda v: function(v, w), (first,), (first,)), (second,), (second,)
        ),
        lambda: jacfwd(jacfwd(alone))(first),
        lambda: jvp(grad(lambda v: jvp(alone, (v,), (first,))[1].sum()), (first,), (first,)),
        lambda: jacfwd(lambda v: vmap(lambda t: jvp(alone, (v,), (t,))[1])(first[None]))(first),
    ):
        with pytest.raises(NotImplementedError, match="within"):
            attempt()
    # and is possible again afterwards
    _assert_equal(jvp(alone, (first,), (first,))[1], definition(face, LINE)(first, second))


@mark("torch.func.jvp of jvp, jacfwd of jacfwd", "refused")
def test_dual_tensors_in_jvp_are_refused_by_pytorch() -> None:
    x, w = operands("forward", LINE)

    def inner(x: Any) -> Any:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(public(LINE)(x, forward_ad.make_dual(w, w))).tangent

    with pytest.raises(RuntimeError, match="forward mode"):
        jvp(inner, (x,), (x,))


def test_transforms_heed_what_is_outside() -> None:
    x, w = operands("forward", LINE)
    want = grad(lambda x: definition("forward", LINE)(x, w).square().sum())(x)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            _assert_equal(grad(lambda x: public(LINE)(x, w).square().sum())(x), want)
    # gradients of torch.autograd through transforms of torch.func, and the other way round
    live = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(
        grad(lambda v: public(LINE)(v, w).square().sum())(live).sum(), live
    )
    cost = lambda v: definition("forward", LINE)(v, w).square().sum()  # noqa: E731
    _assert_equal(got, grad(lambda v: grad(cost)(v).sum())(x))
    mapped = torch.stack([x, 2 * x]).requires_grad_()
    (got,) = torch.autograd.grad(
        vmap(lambda v: public(LINE)(v, w).square().sum())(mapped).sum(), mapped
    )
    _assert_equal(got, torch.stack([want, 2 * want]))


# --- vmap -----------------------------------------------------------------------------------------
def _loop(function: Any, dims: tuple[Any, ...], inputs: tuple[Any, ...], out: int) -> Any:
    """vmap, by hand."""
    extent = next(t.shape[d] for t, d in zip(inputs, dims, strict=True) if d is not None)
    results = []
    for j in range(extent):
        results.append(
            function(
                *(t if d is None else t.select(d, j) for t, d in zip(inputs, dims, strict=True))
            )
        )
    return torch.stack(results, out)


def _mapped(face: str, line: str, dims: tuple[Any, ...], extent: int = 3, **data: Any) -> Any:
    parts = [operands(face, line, seed=10 * j, **data) for j in range(extent)]
    return tuple(
        parts[0][j] if dim is None else torch.stack([part[j] for part in parts], dim)
        for j, dim in enumerate(dims)
    )


@mark("vmap over x, over w, over both", "supported", note="any in_dims and out_dims; one call")
@pytest.mark.parametrize("how", [0, 2, 4, 6])
@pytest.mark.parametrize("line", [LINE, LINES[3]])
@pytest.mark.parametrize("face", FACES)
def test_vmap_is_one_call(face: str, line: str, how: int) -> None:
    function = ours(face, line, how=how)
    dtype = torch.complex128 if how else torch.float64
    for dims in itertools.product((None, 0, 1, -1), repeat=2):
        if dims == (None, None):
            continue
        inputs = _mapped(face, line, dims, dtype=dtype, make=normals)
        for out in (0, 2, -1):
            with Calls() as calls:
                got = vmap(function, dims, out)(*inputs)
            assert calls.faces == [face]
            assert torch.equal(got, _loop(function, dims, inputs, out))
        weights = OPERANDS[face][1] == "w"
        if weights:  # never broadcast, never copied
            assert all(b.count(0) == 0 for _, b in calls.strides[:1])
            assert torch.Size(calls.shapes[0][1]).numel() == inputs[1].numel()
        if dims[1] == 0 or dims[1] is None:
            assert not {"clone", "copy_", "cat", "stack"} & set(calls.others) or dims[0] in (1, -1)


@mark("vmap over x, over w, over both", "supported")
@pytest.mark.parametrize("line", LINES)
def test_vmap_of_the_functions(line: str) -> None:
    for face, function, seat in (("forward", public, "y"), ("grad_input", transposed, "x")):
        bias = integers((3, *parse(line).shape(seat)[1:]), 9)
        for dims in ((0, None), (None, 0), (0, 0), (1, 2)):
            inputs = _mapped(face, line, dims)
            _assert_equal(
                vmap(function(line), dims)(*inputs), _loop(definition(face, line), dims, inputs, 0)
            )
            got = vmap(function(line), (*dims, 0))(*inputs, bias)
            want = _loop(function(line), (*dims, 0), (*inputs, bias), 0)
            assert torch.equal(got, want)
        # without a batch
        x, w = _mapped(face, line, (0, None))
        _assert_equal(vmap(function(line), (0, None))(x[:, 0], w), function(line)(x[:, 0], w))


@mark("vmap of vmap", "supported", note="one call; a weight is never broadcast")
@pytest.mark.parametrize("face", FACES)
def test_nested_vmap(face: str) -> None:
    function = ours(face, LINE)
    choices = (None, 0, 1)
    for inner in itertools.product((None, 0, 1), repeat=2):
        for outer in itertools.product(choices, repeat=2):
            if (None, None) in (inner, outer):
                continue
            parts = [
                [operands(face, LINE, seed=100 * i + 10 * j) for j in range(2)] for i in range(3)
            ]
            inputs = []
            for seat in (0, 1):
                rows = [
                    [parts[i if outer[seat] is not None else 0][j][seat] for j in range(2)]
                    for i in range(3)
                ]
                rows = [r[0] if inner[seat] is None else torch.stack(r, inner[seat]) for r in rows]
                inputs.append(rows[0] if outer[seat] is None else torch.stack(rows, outer[seat]))
            with Calls() as calls:
                got = vmap(vmap(function, inner), outer)(*inputs)
            assert calls.faces == [face], (inner, outer)
            want = _loop(
                lambda a, b, inner=inner: _loop(definition(face, LINE), inner, (a, b), 0),
                outer,
                tuple(inputs),
                0,
            )
            assert torch.equal(got, want), (inner, outer)
            if OPERANDS[face][1] == "w":
                assert torch.Size(calls.shapes[0][1]).numel() == inputs[1].numel()


@mark("vmap with chunk_size, over extents of 1 and 0", "supported")
def test_vmap_extents() -> None:
    inputs = _mapped("forward", LINE, (0, 0), 5)
    want = _loop(definition("forward", LINE), (0, 0), inputs, 0)
    with Calls() as calls:
        _assert_equal(vmap(public(LINE), chunk_size=2)(*inputs), want)
    assert calls.faces == ["forward"] * 3
    one = tuple(t[:1] for t in inputs)
    _assert_equal(vmap(public(LINE))(*one), want[:1])
    x, w = inputs
    for extent in (0, 1):
        for dims in ((0, None), (None, 0), (0, 0)):
            some = tuple(
                t[0] if d is None else t[:extent] for t, d in zip((x, w), dims, strict=True)
            )
            got = vmap(public(LINE), dims)(*some)
            assert got.shape == (extent, *want.shape[1:])


def test_vmap_keeps_memory_orders() -> None:
    line = "n2 a3>b4 i5x6 k2x3"
    x, w = _mapped("forward", line, (0, None))
    last = torch.stack([t.to(memory_format=torch.channels_last) for t in x])
    last = last.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    y = vmap(public(line), (0, None))(last, w)
    _assert_equal(y, vmap(public(line), (0, None))(x, w))
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in y)
    both = vmap(public(line))(last, torch.stack([w, 2 * w, 3 * w]))
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in both)


@mark("per-sample gradients: vmap of grad", "supported", note="one call of each operator")
@pytest.mark.parametrize("line", LINES)
def test_per_sample_gradients(line: str) -> None:
    for face, function in (("forward", public), ("grad_input", transposed)):
        first, second = operands(face, line, make=normals)

        def cost(x: Any, w: Any, function: Any = function) -> Any:
            return function(line)(x[None], w).square().sum()

        with Calls() as calls:
            got = vmap(grad(cost, (0, 1)), (0, None))(first, second)
        rules = {"forward": ["grad_input"], "grad_input": ["forward"]}[face]
        assert sorted(calls.faces) == sorted([face, *rules, "grad_weight"])
        for n in range(first.shape[0]):
            one, other = (t.clone().requires_grad_() for t in (first[n], second))
            want = torch.autograd.grad(cost(one, other), (one, other))
            assert torch.equal(got[0][n], want[0]) and torch.equal(got[1][n], want[1])


@mark("per-sample gradients: vmap of grad", "supported")
@mark("torch.func.functional_call", "supported")
def test_per_sample_gradients_of_a_module() -> None:
    model = torch.nn.Sequential(
        LocallyConnected2d(2, 3, (5, 4), 2), torch.nn.Tanh(), LocallyConnected2d(3, 2, (4, 3), 2)
    ).double()
    parameters = dict(model.named_parameters())
    x = normals((4, 2, 5, 4))

    def cost(parameters: Any, x: Any) -> Any:
        return functional_call(model, parameters, (x[None],)).square().sum()

    got = vmap(grad(cost), (None, 0))({k: v.detach() for k, v in parameters.items()}, x)
    assert set(got) == set(parameters)
    for n in range(4):
        want = torch.autograd.grad(cost(parameters, x[n]), list(parameters.values()))
        for name, value in zip(parameters, want, strict=True):
            assert torch.equal(got[name][n], value), name


@mark("ensembles: stack_module_state and vmap", "supported", note="one call for all members")
def test_ensemble() -> None:
    members = [LocallyConnected2d(2, 3, (5, 4), 2).double() for _ in range(3)]
    parameters, buffers = stack_module_state(members)
    x = normals((4, 2, 5, 4))

    def call(parameters: Any, buffers: Any, x: Any) -> Any:
        return functional_call(members[0], (parameters, buffers), (x,))

    with Calls() as calls:
        got = vmap(call, (0, 0, None))(parameters, buffers, x)
    assert calls.faces == ["forward"]
    assert torch.equal(got, torch.stack([member(x) for member in members]))
    costs = lambda p: vmap(call, (0, 0, None))(p, buffers, x).square().sum()  # noqa: E731
    gradients = grad(costs)({k: v.detach() for k, v in parameters.items()})
    for j, member in enumerate(members):
        want = torch.autograd.grad(member(x).square().sum(), (member.weight, member.bias))
        assert torch.equal(gradients["weight"][j], want[0])
        assert torch.equal(gradients["bias"][j], want[1])


@mark("grad of vmap, jvp of vmap", "supported", note="one call of each operator")
@mark("vmap of jvp, of vjp, of hessian", "supported")
@pytest.mark.parametrize("face", FACES)
def test_vmap_and_derivatives(face: str) -> None:
    for dims in ((0, None), (None, 1), (1, 0)):
        inputs = _mapped(face, TINY, dims)
        tangents = tuple(integers(t.shape, 40 + j) for j, t in enumerate(inputs))

        def everything(
            function: Any, dims: Any = dims, inputs: Any = inputs, tangents: Any = tangents
        ) -> list[Any]:
            def cost(*v: Any) -> Any:
                return vmap(function, dims, 1)(*v).square().sum()

            def slope(a: Any, b: Any, da: Any, db: Any) -> Any:
                return jvp(function, (a, b), (da, db))

            def back(a: Any, b: Any) -> Any:
                result, pullback = vjp(function, a, b)
                return pullback(2 * result)

            def curve(a: Any, b: Any) -> Any:
                return hessian(lambda *v: function(*v).square().sum(), (0, 1))(a, b)

            return [
                grad(cost, (0, 1))(*inputs),
                jvp(vmap(function, dims), inputs, tangents),
                jvp(grad(cost, (0, 1)), inputs, tangents),
                vmap(slope, dims * 2)(*inputs, *tangents),
                vmap(back, dims)(*inputs),
                vmap(curve, dims)(*inputs),
                jacrev(vmap(function, dims), 1)(*inputs),
                jacfwd(vmap(function, dims), 0)(*inputs),
            ]

        _assert_equal(everything(ours(face, TINY)), everything(definition(face, TINY)))
        with Calls() as calls:
            grad(lambda *v, dims=dims: vmap(ours(face, TINY), dims)(*v).sum(), (0, 1))(*inputs)
        assert len(calls.faces) == 3


@mark("batched gradients (is_grads_batched)", "supported")
def test_vmap_of_a_pullback_is_one_call() -> None:
    x, w = operands("forward", LINE)
    y, pullback = vjp(public(LINE), x, w)
    cotangents = integers((4, *y.shape), 5)
    with Calls() as calls:
        got = vmap(pullback)(cotangents)
    assert sorted(calls.faces) == ["grad_input", "grad_weight"]
    for j in range(4):
        _assert_equal([g[j] for g in got], list(pullback(cotangents[j])))


@mark("vmap of the operators in torch.ops.unshared", "supported", note="not their derivatives")
@pytest.mark.parametrize("face", FACES)
def test_vmap_of_an_operator(face: str) -> None:
    operator = getattr(torch.ops.unshared, face)
    function = lambda a, b: operator(a, b, LINE, "", 0)  # noqa: E731
    for dims in ((0, None), (None, 0), (1, 2)):
        inputs = _mapped(face, LINE, dims)
        _assert_equal(vmap(function, dims)(*inputs), _loop(definition(face, LINE), dims, inputs, 0))
    nested = vmap(vmap(function, (0, None)), (None, 0))
    first, second = operands(face, LINE)
    want = definition(face, LINE)(first, second)[None, None]
    _assert_equal(nested(first[None], second[None]), want)


@mark("derivatives by torch.func of the operators in torch.ops.unshared", "refused",
      note="those of unshared.torch have them")  # fmt: skip
@pytest.mark.parametrize("face", FACES)
def test_derivatives_of_an_operator_are_refused(face: str) -> None:
    operator = getattr(torch.ops.unshared, face)
    first, second = operands(face, LINE)
    function = lambda a: operator(a, second, LINE, "", 0)  # noqa: E731
    cost = lambda a: function(a).sum()  # noqa: E731
    for attempt in (
        lambda: grad(cost)(first),
        lambda: jvp(function, (first,), (first,)),
        lambda: jacfwd(function)(first),
        lambda: vmap(grad(cost))(first[None]),
        lambda: grad(lambda a: vmap(function)(a).sum())(first[None]),
        lambda: jvp(vmap(function), (first[None],), (first[None],)),
    ):
        with pytest.raises((NotImplementedError, RuntimeError)):
            attempt()


# --- others ---------------------------------------------------------------------------------------
@mark(
    "torch.func.functionalize",
    "refused",
    note="by PyTorch, of any autograd.Function; compile does it",
)
def test_functionalize() -> None:
    x, w = operands("forward", LINE)
    with pytest.raises(RuntimeError, match="Functionalize"):
        functionalize(public(LINE))(x, w)


@mark("torch.func within autocast", "supported")
@pytest.mark.parametrize("inside", [True, False])
def test_autocast(inside: bool) -> None:
    x, w = operands("forward", LINE, torch.float32)
    tangents = operands("forward", LINE, torch.float32, seed=10)
    define = definition("forward", LINE)
    want = vjp(define, x, w)[1](torch.ones_like(define(x, w)))
    with torch.autocast("cpu", torch.bfloat16):
        y, pullback = vjp(public(LINE), x, w)
        _, pushforward = linearize(public(LINE), x, w)
        assert y.dtype == torch.bfloat16
        value, tangent = jvp(public(LINE), (x, w), tangents)
        assert value.dtype == tangent.dtype == torch.bfloat16
        assert torch.equal(tangent.float(), jvp(define, (x, w), tangents)[1])
        assert vmap(public(LINE), (0, None))(x[None], w).dtype == torch.bfloat16
        if inside:
            found, slope = pullback(torch.ones_like(y)), pushforward(*tangents)
    if not inside:
        found, slope = pullback(torch.ones_like(y)), pushforward(*tangents)
    _assert_equal(found, want)  # of float32, as the operands are
    assert torch.equal(slope.float(), tangent.float())


@mark("make_fx", "supported", note="the operators stay in the graph")
def test_make_fx() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    x, w = operands("forward", LINE)
    tangents = operands("forward", LINE, seed=10)
    for function in (
        lambda a, b: public(LINE)(a, b),
        lambda a, b: grad(lambda *v: public(LINE)(*v).square().sum(), (0, 1))(a, b),
        lambda a, b: jvp(public(LINE), (a, b), (a, b)),
        lambda a, b: vmap(public(LINE), (0, None))(a[None], b),
    ):
        graph = make_fx(function)(x, w)
        assert "unshared" in graph.code
        _assert_equal(graph(*tangents), function(*tangents))
