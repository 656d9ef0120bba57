"""Where a program goes: other platforms, export, stored modules, other versions of jaxlib."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unshared
from arrays import FLOAT32, assert_same_bits, reals
from cases import FACES, OPERANDS, Case, library, parse
from unshared import _core

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
from jax import export  # noqa: E402

import unshared.jax as adapter  # noqa: E402

INFO = _core.build_info()
CASE = parse("n3 a4>b6 g2 i5x4 k2x3 s2x1 p1")
LINES = [CASE, parse("n2 a3>b2 i7 k3 d2 e2 p1:2"), parse("n2 a1>b3 g1 i3x4x3 k2x2x1")]
CHECKS = [export.DisabledSafetyCheck.custom_call(name) for name in adapter.TARGETS]


def jaxes(face: str, case: Case, first: Any, second: Any, **more: Any) -> Any:
    return getattr(adapter, face)(first, second, *case.sizes(face), **case.options, **more)


def lowered(function: Any, *arrays: Any, platform: str) -> str:
    text: str = jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
    return text


@pytest.mark.transformation(
    "lowering for CUDA, by a build without CUDA kernels", "limit", note="by jax.lax"
)
def test_cuda_without_kernels(face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "build_info", functools.partial(dict, INFO | {"cuda_built": False}))
    arrays = [np.ones(CASE.shape(seat), np.float32) for seat in OPERANDS[face]]
    text = lowered(lambda a, b: jaxes(face, CASE, a, b), *arrays, platform="cuda")
    assert "unshared_" not in text and "convolution" in text


@pytest.mark.transformation(
    "lowering for CUDA, by a build with CUDA kernels", "supported", note="no device is asked for"
)
def test_cuda_with_kernels(face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowering is that of the CPU: the same call, by the same name, of the same problem."""
    monkeypatch.setattr(_core, "build_info", functools.partial(dict, INFO | {"cuda_built": True}))
    case = CASE.with_(n=4)
    arrays = [np.ones(case.shape(seat), np.float32) for seat in OPERANDS[face]]
    text = lowered(lambda a, b: jaxes(face, case, a, b), *arrays, platform="cuda")
    assert f"@unshared_{face}(" in text and "n4 a4>b6 g2 i5x4" in text


def test_cuda_lowering_follows_the_build(face: str) -> None:
    arrays = [np.ones(CASE.shape(seat), np.float32) for seat in OPERANDS[face]]
    text = lowered(lambda a, b: jaxes(face, CASE, a, b), *arrays, platform="cuda")
    assert ("unshared_" in text) == unshared.build_info()["cuda_built"]


def test_precision_reaches_the_call_and_its_derivatives(
    face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the program; on the CPU it changes nothing. Words are checked while tracing."""
    monkeypatch.setattr(_core, "build_info", functools.partial(dict, INFO | {"cuda_built": True}))
    arrays = [reals(np.random.default_rng(0), CASE.shape(s), FLOAT32) for s in OPERANDS[face]]
    for number, word in enumerate((None, "tf32", "3xtf32")):

        def function(a: Any, b: Any, word: str | None = word) -> Any:
            sizes = CASE.sizes(face)
            return getattr(adapter, face)(a, b, *sizes, **CASE.options, precision=word)

        def second_order(a: Any, b: Any, function: Any = function) -> Any:
            return jax.grad(lambda b: (jax.vmap(function, (0, None))(a[None], b) ** 2).sum())(b)

        for program, calls in ((function, 1), (second_order, 2)):
            text = lowered(program, *arrays, platform="cuda")
            assert text.count(f"precision = {number} : i32") == text.count("@unshared_") == calls
        assert_same_bits(np.asarray(jax.jit(function)(*arrays)), library(face, CASE, *arrays))
    for word, dtype in (("fast", np.float32), ("tf32", np.float16), ("HIGHEST", np.float32)):
        with pytest.raises(unshared.ArgumentValueError) as caught:
            jaxes(face, CASE, *(v.astype(dtype) for v in arrays), precision=word)
        assert caught.value.argument == "precision"


def test_precision_of_the_drop_in() -> None:
    lhs, rhs = np.ones((2, 3, 9), np.float32), np.ones((7, 9, 4), np.float32)

    def program(precision: Any) -> str:
        return lowered(
            lambda l, r: adapter.conv_general_dilated_local(  # noqa: E741
                l, r, (1,), "VALID", (3,), dimension_numbers=("NCH", "HIO", "NCH"),
                precision=precision,
            ),
            lhs, rhs, platform="cpu",
        )  # fmt: skip

    for precision in (None, jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGHEST, "highest"):
        assert "precision = 0 : i32" in program(precision)
    assert "precision = 2 : i32" in program("3xtf32")
    with pytest.raises(unshared.ArgumentValueError):
        program("fast")


def test_handlers_of_both_platforms() -> None:
    assert set(_core.xla_handlers()) == {(p, f) for p in ("cpu", "CUDA") for f in FACES}


@pytest.mark.transformation("platforms without kernels (TPU)", "supported", note="by jax.lax")
@pytest.mark.parametrize("case", LINES, ids=str)
def test_fallback_computes_the_same(face: str, case: Case, rng: np.random.Generator) -> None:
    """The program for a TPU holds no call of ours; what it computes is shown on the CPU."""
    arrays = [rng.integers(-3, 4, case.shape(seat)).astype(np.float32) for seat in OPERANDS[face]]
    text = lowered(lambda a, b: jaxes(face, case, a, b), *arrays, platform="tpu")
    assert "unshared_" not in text
    seen: list[Any] = []

    def remember(face: str, first: Any, second: Any, geometry: Any) -> Any:
        seen.append(geometry)
        return bind(face, first, second, geometry)

    bind = adapter._bind
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "_bind", remember)
        jaxes(face, case, *arrays)
    got = adapter._reference(face, *map(jnp.asarray, arrays), geometry=seen[0])
    np.testing.assert_array_equal(got, library(face, case, *arrays))

    mapped = seen[0]._replace(problem=seen[0].problem.restate(mapped=3), shared=OPERANDS[face][1])
    stack = np.stack([arrays[0] * v for v in (1, 2, -1)])
    got = adapter._reference(face, jnp.asarray(stack), jnp.asarray(arrays[1]), geometry=mapped)
    want = np.stack([library(face, case, one, arrays[1]) for one in stack])
    np.testing.assert_array_equal(got, want)


def test_fallback_with_dimension_numbers(rng: np.random.Generator) -> None:
    lhs = rng.integers(-3, 4, (5, 3, 6, 2)).astype(np.float32)  # W C H N
    rhs = rng.integers(-3, 4, (4, 18, 3, 5)).astype(np.float32)  # O {C w h} W H
    dims = ("WCHN", "OIWH", "HNCW")
    arguments = (rhs, (1, 1), "VALID", (3, 2))
    want = jax.lax.conv_general_dilated_local(lhs, *arguments, dimension_numbers=dims)
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "_bind", lambda *a: seen.append(a))
        adapter.conv_general_dilated_local(lhs, *arguments, dimension_numbers=dims)
    (face, first, second, geometry) = seen[0]
    np.testing.assert_array_equal(adapter._reference(face, first, second, geometry=geometry), want)
    dy = rng.integers(-3, 4, want.shape).astype(np.float32)
    got = adapter._reference("grad_weight", first, jnp.asarray(dy), geometry=geometry)
    np.testing.assert_array_equal(got, adapter._bind("grad_weight", first, dy, geometry))


@pytest.mark.transformation("jax.export", "supported", note="with the checks of TARGETS disabled")
def test_export(rng: np.random.Generator) -> None:
    x, w = (reals(rng, CASE.shape(seat), FLOAT32) for seat in "xw")
    function = jax.jit(lambda x, w: jaxes("forward", CASE, x, w))
    stored = export.export(function, disabled_checks=CHECKS)(x, w).serialize(vjp_order=1)
    loaded = export.deserialize(stored)
    assert_same_bits(np.asarray(loaded.call(x, w)), library("forward", CASE, x, w))
    got = jax.grad(lambda w: loaded.call(x, w).sum())(w)
    ones = np.ones(CASE.shape("y"), np.float32)
    assert_same_bits(np.asarray(got), library("grad_weight", CASE, x, ones))


def test_exported_module_in_a_process_that_never_traced(tmp_path: Path) -> None:
    x, w = (np.ones(CASE.shape(seat), np.float32) for seat in "xw")
    function = jax.jit(lambda x, w: jaxes("forward", CASE, x, w))
    stored = export.export(function, disabled_checks=CHECKS)(x, w).serialize()
    (tmp_path / "module").write_bytes(stored)
    code = (
        "import pathlib, sys, numpy, unshared.jax as adapter\nfrom jax import export\n"
        "adapter.register()\n"
        "module = export.deserialize(pathlib.Path(sys.argv[1]).read_bytes())\n"
        f"x, w = numpy.ones({CASE.shape('x')}, 'f'), numpy.ones({CASE.shape('w')}, 'f')\n"
        "print(float(module.call(x, w).sum()))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "module"],
        capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    assert float(ran.stdout) == float(library("forward", CASE, x, w).sum())


@pytest.mark.transformation("symbolic shapes in jax.export", "refused")
def test_symbolic_shapes() -> None:
    (n,) = export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, *CASE.shape("x")[1:]), np.float32)
    w = jax.ShapeDtypeStruct(CASE.shape("w"), np.float32)
    with pytest.raises(NotImplementedError, match="shapes that are numbers"):
        export.export(jax.jit(lambda x, w: jaxes("forward", CASE, x, w)))(x, w)


def test_edited_module_cannot_leave_its_buffers() -> None:
    """The handler checks the text against the buffers it is given, whoever wrote the text."""
    adapter.register()
    x, w = jnp.ones((1, 1, 4)), jnp.ones((2, 1, 1, 3))
    shape = jax.ShapeDtypeStruct((1, 1, 2), x.dtype)

    def call(problem: str) -> Any:
        return jax.ffi.ffi_call("unshared_forward", shape)(
            x, w, problem=problem, precision=np.int32(0)
        )

    np.testing.assert_array_equal(call("n1 a1>b1 i4 k3"), [[[3, 3]]])
    for text in (
        "n2 a1>b1 i4 k3",
        "n1 a1>b1 i5 k3",
        "n1 a1>b1 i4 k2",
        "n1 a1>b1 i4 k3 x:[0,0,2]",
        "n1 a1>b1 i4 k3 x:[0,0,-1]",
        "nonsense",
        "",
    ):
        with pytest.raises(Exception, match=r"unshared\.(forward|parse_problem)"):
            jax.block_until_ready(call(text))
    mixed = jax.ffi.ffi_call("unshared_forward", jax.ShapeDtypeStruct((1, 1, 2), np.int32))
    with pytest.raises(Exception, match="one dtype"):
        jax.block_until_ready(mixed(x, w, problem="n1 a1>b1 i4 k3", precision=np.int32(0)))


def test_polite_refusal_of_an_older_jaxlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "build_info", functools.partial(dict, INFO | {"xla_ffi": "0.999"}))
    with pytest.raises(unshared.UnsupportedError, match=r"XLA FFI 0\.999 or newer"):
        adapter.register.__wrapped__()


def test_build_without_handlers_explains_itself() -> None:
    code = (
        "import unshared, unshared._core as core\n"
        "info = core.build_info() | {'xla_ffi': None}\n"
        "core.build_info = lambda: info\n"
        "try:\n    import unshared.jax\n"
        "except ImportError as error:\n    print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no jaxlib was found where it was built" in ran.stdout


def test_importing_unshared_does_not_import_jax() -> None:
    code = "import sys, unshared; print('jax' in sys.modules or 'jaxlib' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
