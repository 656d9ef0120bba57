"""The PyTorch layer under the compiler, export, fake tensors, autocast, tracing, and other modes.

Compiled code must give the bits of eager code: the operators stay whole. What Dynamo cannot do
with torch.func is refused with fullgraph=True, and right without it.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch.func import grad, hessian, jacrev, jvp, vmap  # noqa: E402

from cases import FACES, parse  # noqa: E402
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
from unshared.torch import (  # noqa: E402
    LocallyConnected2d,
    LocallyConnectedTranspose2d,
    locally_connected,
    locally_connected_transpose,
)

mark = pytest.mark.transformation
forward_ad = torch.autograd.forward_ad
OPERATORS = [getattr(torch.ops.unshared, face).default for face in FACES]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compiled(function: Any, backend: Any = "aot_eager", **options: Any) -> Any:
    return torch.compile(function, backend=backend, fullgraph=True, **options)


def _model() -> Any:
    """Of small integers: sums over places are the compiler's own, and exact in any order."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        LocallyConnected2d(2, 4, (5, 6), (2, 3), stride=2, padding=1, groups=2),
        torch.nn.ReLU(),
        LocallyConnectedTranspose2d(4, 3, (3, 3), 2, stride=2, bias="shared"),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape))
    return model


def _everything(function: Any, *inputs: Any) -> list[Any]:
    """Result and gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    result = function(*leaves)
    return [result.detach(), *torch.autograd.grad(result.square().sum(), leaves)]


def _same(got: list[Any], want: list[Any]) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


# --- torch.compile --------------------------------------------------------------------------------
@mark("torch.compile(fullgraph=True)", "supported", note="same bits as eager, forward and backward")
@pytest.mark.parametrize("line", LINES)
def test_compiled_functions(line: str) -> None:
    for face, function, seat in (("forward", public, "y"), ("grad_input", transposed, "x")):
        case = parse(line)
        first, second = operands(face, line, make=normals)
        bias = normals(case.shape(seat)[1:], 5)
        torch._dynamo.reset()
        inputs = (first, second, bias)
        _same(_everything(_compiled(function(line)), *inputs), _everything(function(line), *inputs))


@mark("torch.compile(fullgraph=True)", "supported")
@pytest.mark.parametrize("backend", ["inductor", "aot_eager", "eager"])
def test_compiled_model(backend: str) -> None:
    model = _model()
    x = torch.randint(-2, 3, (3, 2, 5, 6)).float()
    compiled = _compiled(model, backend)
    for one in (x, x.to(memory_format=torch.channels_last)):
        want = model(one)
        want.square().sum().backward()
        expected = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        got = compiled(one)
        got.square().sum().backward()
        assert torch.equal(got, want)
        for p, g in zip(model.parameters(), expected, strict=True):
            assert g.any() and torch.equal(p.grad, g)
        model.zero_grad()
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


@mark("torch.compile with a dynamic batch", "supported", note="one graph for all sizes")
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_dynamic_batch(backend: str) -> None:
    model = _model()[:2]
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for batch in (2, 3, 7, 13):
        x = normals((batch, 2, 5, 6), batch, torch.float32)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        assert torch.equal(compiled(x), model(x))
        compiled(x).sum().backward()
    assert counter.frame_count == 1
    # without being told, from the second size on
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(public(LINE), backend=counter, fullgraph=True)
    _, w = operands("forward", LINE)
    for batch in (2, 3, 7, 13):
        x = integers((batch, *parse(LINE).shape("x")[1:]), batch)
        assert torch.equal(function(x, w), definition("forward", LINE)(x, w))
    assert counter.frame_count == 2


def test_dynamic_batch_in_other_memory_orders() -> None:
    line = "n2 a3>b4 i5x6 k2x3"
    _, w = operands("forward", line)
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(public(line), backend=counter, fullgraph=True)
    for batch in (2, 3, 7, 13):
        x = integers((batch, 3, 5, 6), batch).to(memory_format=torch.channels_last)
        y = function(x, w)
        assert torch.equal(y, definition("forward", line)(x, w))
        assert y.is_contiguous(memory_format=torch.channels_last)
    assert counter.frame_count == 2
    x = x.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)  # and another order
    assert torch.equal(function(x, w), definition("forward", line)(x, w))


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"stride": (2, 1), "padding": ((1, 0), (0, 2))},
        {"padding": "same", "dilation": 2},
        {"groups": 2, "padding": "valid"},
    ],
    ids=str,
)
def test_compiled_options(options: dict[str, Any]) -> None:
    layer = LocallyConnected2d(2, 4, (5, 6), (2, 3), **options)
    x, w = normals((3, 2, 5, 6), dtype=torch.float32), layer.weight.detach()
    function = lambda x, w: locally_connected(x, w, **options)  # noqa: E731
    _same(_everything(_compiled(function), x, w), _everything(function, x, w))
    assert torch.equal(_compiled(layer)(x), layer(x))
    unbatched = _compiled(function)(x[0], w)
    assert torch.equal(unbatched, function(x[0], w))


def test_compiled_transposed_options() -> None:
    x, w = normals((2, 4, 3, 2)), normals((3, 2, 4, 1, 3, 2), 1)
    function = lambda x, w: locally_connected_transpose(  # noqa: E731
        x, w, None, 2, (1, 0), (1, 0), 2
    )
    _same(_everything(_compiled(function), x, w), _everything(function, x, w))


def test_errors_are_found_while_compiling() -> None:
    x, w = operands("forward", LINE)
    with pytest.raises(Exception, match=r"locally_connected|unshared"):
        _compiled(public(LINE))(x[:, :1], w)


@mark("torch.compile(fullgraph=True)", "supported", note="complex numbers in aot_eager")
@pytest.mark.parametrize("how", [0, 2, 4, 6])
def test_compiled_complex(how: int) -> None:
    first, second = operands("forward", LINE, torch.complex128)
    function = ours("forward", LINE, how=how)
    cost = lambda a, b: torch.view_as_real(function(a.conj(), b))  # noqa: E731
    got = _everything(_compiled(cost), first, second)
    assert all(
        torch.equal(a, b) for a, b in zip(got, _everything(cost, first, second), strict=True)
    )


@mark("torch.compile of vmap", "supported", note="one call")
@pytest.mark.parametrize("face", FACES)
def test_compiled_vmap(face: str) -> None:
    one, two = operands(face, LINE), operands(face, LINE, seed=10)
    stacked = [torch.stack(pair) for pair in zip(one, two, strict=True)]
    for dims in ((0, None), (None, 0), (0, 0)):
        inputs = [s if d == 0 else t for s, t, d in zip(stacked, one, dims, strict=True)]
        function = vmap(ours(face, LINE), dims)
        torch._dynamo.reset()
        compiled = _compiled(lambda a, b, f=function: f(a, b))
        got = compiled(*inputs)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            compiled(*inputs)
        assert torch.equal(got, function(*inputs)) and got.any()
        counts = [e.count for e in profile.key_averages() if e.key.startswith("unshared::")]
        assert counts == [1]


def _functions() -> dict[str, Any]:
    tangents = operands("forward", LINE, seed=10)

    def cost(f: Any) -> Any:
        return lambda *v: f(*v).square().sum()

    def of_one(f: Any) -> Any:
        return lambda x, w: cost(f)(x[None], w)

    def of_all(f: Any, w: Any) -> Any:
        return lambda x: vmap(f, (0, None))(x[None], w).sum()

    return {
        "grad": lambda f: lambda *v: grad(cost(f), (0, 1))(*v),
        "vmap of grad": lambda f: lambda x, w: vmap(grad(of_one(f)), (0, None))(x, w),
        "grad of vmap": lambda f: lambda x, w: grad(of_all(f, w))(x),
        "jacrev": lambda f: lambda *v: jacrev(f)(*v),
        "jvp": lambda f: lambda *v: jvp(f, v, tangents)[1],
        "hessian": lambda f: lambda *v: hessian(cost(f))(*v),
        "jvp of grad": lambda f: lambda *v: jvp(grad(cost(f)), v, tangents),
    }


@mark("torch.compile(fullgraph=True) of torch.func.grad, vjp, jacrev, hessian", "refused",
      note="an operator defined in Python has no such derivatives inside the compiler")  # fmt: skip
@mark("torch.compile(fullgraph=True) of torch.func.jvp, jacfwd", "refused")
@mark("torch.compile of torch.func transforms, graph breaks allowed", "supported",
      note="that part runs in eager mode")  # fmt: skip
@pytest.mark.parametrize("name", _functions())
def test_compiled_derivatives_of_functions(name: str) -> None:
    if name == "jacrev" and torch.__version__ < "2.13":
        pytest.skip("of any function with a graph break, this PyTorch gets jacrev wrong")
    x, w = operands("forward", LINE)
    function = _functions()[name]
    with pytest.raises(Exception, match=r"unshared\.forward"):
        _compiled(function(public(LINE)))(x, w)
    torch._dynamo.reset()
    got = torch.compile(function(public(LINE)), backend="aot_eager")(x, w)
    leaves = torch.utils._pytree.tree_leaves
    want = leaves(function(definition("forward", LINE))(x, w))
    assert all(torch.equal(a, b) for a, b in zip(leaves(got), want, strict=True))
    assert any(t.any() for t in want)


@mark("torch.func.grad, jvp, vmap of a compiled function", "refused", note="by PyTorch")
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_derivatives_of_compiled_functions(transform: str) -> None:
    x, w = operands("forward", LINE)
    compiled = _compiled(public(LINE))
    calls = {
        "grad": lambda: grad(lambda x: compiled(x, w).sum())(x),
        "jvp": lambda: jvp(lambda x: compiled(x, w), (x,), (x,)),
        "vmap": lambda: vmap(compiled, (0, None))(x[None], w),
    }
    with pytest.raises(Exception, match=r"torch\.func"):
        calls[transform]()


@mark("torch.compile and dual tensors", "limit",
      note="right in the eager and aot_eager backends; Inductor loses tangents of PyTorch's own "
      "operators, not of these")  # fmt: skip
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("face", FACES)
def test_compiled_dual_tensors(face: str, backend: str) -> None:
    first, second = operands(face, LINE)
    dfirst, dsecond = operands(face, LINE, seed=10)
    define = definition(face, LINE)
    want = define(dfirst, second) + define(first, dsecond)

    def tangent(function: Any, a: Any, b: Any) -> Any:
        with forward_ad.dual_level():
            one, other = forward_ad.make_dual(first, a), forward_ad.make_dual(second, b)
            return forward_ad.unpack_dual(function(one, other)).tangent

    function = ours(face, LINE)
    assert torch.equal(tangent(_compiled(function, backend), dfirst, dsecond), want)
    torch._dynamo.reset()
    inside = _compiled(lambda a, b: tangent(function, a, b), backend)
    assert torch.equal(inside(dfirst, dsecond), want)


def test_inductor_keeps_tangents_of_the_layer() -> None:
    x, w = operands("forward", LINE)
    compiled = _compiled(public(LINE), "inductor")
    with forward_ad.dual_level():
        y = compiled(forward_ad.make_dual(x, x), w)
        tangent = forward_ad.unpack_dual(y).tangent
        assert tangent is not None and torch.equal(tangent, public(LINE)(x, w))


@mark("activation checkpointing, compiled", "supported")
def test_compiled_checkpoint() -> None:
    first, second = operands("forward", LINE)

    layer = public(LINE)

    def function(x: Any, w: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(layer, x, w, use_reentrant=False)

    _same(_everything(_compiled(function), first, second), _everything(layer, first, second))


# --- torch.export ---------------------------------------------------------------------------------
@mark("torch.export with a dynamic batch", "supported", note="the operators stay in the graph")
def test_export() -> None:
    model = _model().eval()
    x = normals((3, 2, 5, 6), dtype=torch.float32)
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(OPERATORS[0]) == targets.count(OPERATORS[1]) == 1
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    for one in (program, program.run_decompositions({}), torch.export.load(stored)):
        module = one.module()
        for n in (1, 3, 8):
            x = normals((n, 2, 5, 6), n, torch.float32)
            assert torch.equal(module(x), model(x))
    # an exported program still learns
    x.requires_grad_()
    (got,) = torch.autograd.grad(program.module()(x).sum(), x)
    assert torch.equal(got, torch.autograd.grad(model(x).sum(), x)[0])


@mark("torch.export of torch.func.jvp", "refused")
def test_export_of_forward_mode() -> None:
    class Slope(torch.nn.Module):
        def forward(self, x: Any, w: Any) -> Any:
            return jvp(lambda x: public(LINE)(x, w), (x,), (x,))[1]

    with pytest.raises(NotImplementedError, match=r"torch\.export"):
        torch.export.export(Slope(), operands("forward", LINE))


@mark("torch.jit.trace", "supported")
@pytest.mark.filterwarnings("ignore")
def test_trace() -> None:
    x, w = operands("forward", LINE)
    traced = torch.jit.trace(public(LINE), (x, w))
    other = operands("forward", LINE, seed=10)
    assert torch.equal(traced(*other), public(LINE)(*other))
    more = torch.cat([other[0], x])
    assert torch.equal(traced(more, w), public(LINE)(more, w))
    assert "unshared::forward" in str(traced.graph)
    _same(_everything(traced, *other), _everything(public(LINE), *other))


# --- tensors without data -------------------------------------------------------------------------
@mark("meta tensors", "supported")
@mark("fake tensors", "supported")
@pytest.mark.parametrize("order", ["", "last"])
@pytest.mark.parametrize("mapped", [0, 1])
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("face", FACES)
def test_shapes_without_data(face: str, line: str, mapped: int, order: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    first, second = operands(face, line)
    if mapped:
        first, second = torch.stack([first] * 3), torch.stack([second] * 3)
    real = ours(face, line, how=mapped)(first, second)
    if order:
        digits = list(range(real.dim()))
        order = "".join(map(str, digits[:1] + digits[2:] + digits[1:2]))
        real = ours(face, line, order, mapped)(first, second)
    meta = ours(face, line, order, mapped)(first.to("meta"), second.to("meta"))
    assert meta.device.type == "meta"
    with FakeTensorMode() as mode:
        fake = ours(face, line, order, mapped)(mode.from_tensor(first), mode.from_tensor(second))
    for one in (meta, fake):
        assert one.shape == real.shape and one.dtype == real.dtype
        strides = zip(one.shape, one.stride(), real.stride(), strict=True)
        assert all(extent == 1 or a == b for extent, a, b in strides)  # of one place, no stride


@mark("meta tensors", "supported")
def test_layers_without_data() -> None:
    layer = LocallyConnected2d(2, 3, 5, 2, device="meta")
    y = layer(torch.empty(4, 2, 5, 5, device="meta"))
    y.sum().backward()
    assert y.shape == (4, 3, 4, 4) and layer.weight.grad.shape == layer.weight.shape
    real = layer.to_empty(device="cpu")
    real.reset_parameters()
    assert real(torch.ones(4, 2, 5, 5)).isfinite().all()


def _samples(face: str) -> Iterator[tuple[Any, ...]]:
    for line in (LINES[0], LINES[3]):
        for dtype, grads in ((torch.float64, False), (torch.float32, True)):
            first, second = operands(face, line, dtype)
            yield first.requires_grad_(grads), second.requires_grad_(grads), line, "", 0
    first, second = operands(face, LINE)
    rank = ours(face, LINE)(first, second).dim()
    digits = "".join(map(str, range(rank)))
    yield first.requires_grad_(), second, LINE, digits[0] + digits[:0:-1], 0
    yield first.detach(), second.requires_grad_(), LINE, digits[1:] + digits[0], 0
    stacked = [torch.stack([t.detach()] * 2).requires_grad_() for t in (first, second)]
    yield (*stacked, LINE, "", 1)
    yield (*stacked, LINE, "0" + "".join(str(int(d) + 1) for d in digits[::-1]), 1)
    for how in (0, 2, 4, 6):
        first, second = operands(face, LINE, torch.complex128)
        yield first.requires_grad_(how == 2), second.requires_grad_(how == 2), LINE, "", how
    last = operands(face, LINE)[0].movedim(1, -1).contiguous().movedim(-1, 1)
    yield last.requires_grad_(), operands(face, LINE)[1], LINE, "", 0


@mark("torch.library.opcheck", "supported", note="every operator")
@pytest.mark.parametrize("face", FACES)
def test_opcheck(face: str) -> None:
    operator = OPERATORS[FACES.index(face)]
    for sample in _samples(face):
        results = torch.library.opcheck(operator, sample)
        assert set(results.values()) == {"SUCCESS"}


# --- autocast -------------------------------------------------------------------------------------
@mark(
    "autocast",
    "supported",
    note="in the dtype asked for; parameters and their gradients keep theirs",
)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: Any, compiled: bool) -> None:
    layer = LocallyConnected2d(2, 3, (5, 4), 2)
    x = normals((3, 2, 5, 4), dtype=torch.float32).requires_grad_()
    half = copy.deepcopy(layer).to(dtype)
    want = half(x.detach().to(dtype))
    call = _compiled(layer) if compiled else layer
    with torch.autocast("cpu", dtype):
        y = call(x)
        assert y.dtype == dtype and torch.equal(y, want)
    y.sum().backward()
    want.sum().backward()
    for p, q in zip(layer.parameters(), half.parameters(), strict=True):
        assert p.grad.dtype == torch.float32 and torch.equal(p.grad, q.grad.float())
    assert x.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype), torch.no_grad():
        assert torch.equal(call(x.detach()), want)
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(call(x.detach()), layer(x.detach()))


@mark("autocast", "supported", note="float64 and complex numbers are left alone")
@pytest.mark.parametrize("other", [torch.float64, torch.complex64], ids=str)
def test_autocast_leaves_alone(other: Any) -> None:
    x, w = (t.requires_grad_() for t in operands("forward", LINE, other))
    with torch.autocast("cpu", torch.bfloat16):
        y = public(LINE)(x, w)
    assert y.dtype == other and torch.equal(y, public(LINE)(x, w))
    assert torch.autograd.grad(y.abs().sum(), w)[0].dtype == other


def test_autocast_meets_half_inputs_and_higher_orders() -> None:
    x, w = operands("forward", LINE, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert public(LINE)(x.bfloat16(), w).dtype == torch.bfloat16
        assert (
            transposed(LINE)(*operands("grad_input", LINE, torch.float32)).dtype == torch.bfloat16
        )
    assert torch.autocast("cpu", torch.bfloat16)(public(LINE))(x, w).dtype == torch.bfloat16
    x.requires_grad_()
    w.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = public(LINE)(x, w).float().square().sum()
    first = torch.autograd.grad(y, (x, w), create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), (x, w))
    assert {t.dtype for t in (*first, *second)} == {torch.float32}


# --- what looks on --------------------------------------------------------------------------------
@mark("TorchDispatchMode, profiler", "supported", note="they see the operators by name")
def test_onlookers() -> None:
    x, w = (t.requires_grad_() for t in operands("forward", LINE))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        public(LINE)(x, w).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {f"unshared::{face}" for face in FACES} <= names
    with Calls() as calls:
        public(LINE)(x, w).sum().backward()
    assert calls.faces == list(FACES)


@mark("pickle, deepcopy, torch.save", "supported")
def test_copies() -> None:
    model = _model()
    x = normals((3, 2, 5, 6), dtype=torch.float32)
    want = model(x)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(stored, weights_only=False),
    ):
        assert torch.equal(other(x), want)
        other(x).sum().backward()
        assert all(p.grad is not None for p in other.parameters())
    assert all(p.grad is None for p in model.parameters())


@mark("subclasses of Tensor", "supported", note="the result is of the subclass")
def test_subclass() -> None:
    class Marked(torch.Tensor):
        pass

    x, w = operands("forward", LINE)
    bias = integers(parse(LINE).shape("y")[1:], 4)
    y = public(LINE)(x.as_subclass(Marked), w, bias)
    assert type(y) is Marked
    assert torch.equal(y.as_subclass(torch.Tensor), public(LINE)(x, w, bias))
