"""Arrays of other libraries: read in place, results of the caller's kind, `out` written or refused.

What a library cannot promise (a tensor that records gradients, a lazily conjugated one, an
immutable array) is refused or right, never wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import unshared
from arrays import (
    BFLOAT16,
    COMPLEX64,
    DTYPES,
    FLOAT32,
    FLOAT64,
    assert_same_bits,
    bits,
    cast,
    integers,
    is_half,
    same_bits,
)
from capsules import Producer
from cases import FACES, OPERANDS, RESULT, Case, exact, library, parse

CASE = parse("n3 a4>b6 g2 i6x5 k3x2 s2x1 p1x0")
REFUSALS = (TypeError, ValueError, NotImplementedError, BufferError)


def _operands(face: str, dtype: np.dtype, case: Case = CASE) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [integers(rng, case.shape(s), dtype, case.terms(face)) for s in OPERANDS[face]]


def _want(face: str, dtype: np.dtype, case: Case = CASE) -> np.ndarray:
    return cast(exact(face, case, *_operands(face, dtype, case)), dtype)


# --- nothing is imported for nothing --------------------------------------------------------------


def test_import_loads_no_framework() -> None:
    script = """
import sys
import unshared
import numpy as np
x, w = np.ones((2, 3, 4), np.float32), np.ones((3, 2, 3, 2), np.float32)
assert unshared.forward(x, w).shape == (2, 2, 3)
class Bare:
    def __dlpack__(self, **_): return x.__dlpack__()
    def __dlpack_device__(self): return x.__dlpack_device__()
unshared.forward(Bare(), w)
frameworks = {"torch", "jax", "jaxlib", "cupy", "tensorflow", "paddle", "mxnet", "ml_dtypes"}
print(sorted(frameworks & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# --- array-api-strict -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [d for d in DTYPES if not is_half(d)], ids=str)
def test_array_api_strict(face: str, dtype: np.dtype) -> None:
    xp = pytest.importorskip("array_api_strict")
    first, second = (xp.asarray(v) for v in _operands(face, dtype))
    got = library(face, CASE, first, second)
    assert type(got) is type(first)
    assert got.device == first.device
    assert_same_bits(np.asarray(np.from_dlpack(got)), _want(face, dtype))
    out = xp.zeros(CASE.shape(RESULT[face]), dtype=first.dtype)
    assert library(face, CASE, first, second, out=out) is out
    assert_same_bits(np.asarray(np.from_dlpack(out)), _want(face, dtype), "out=")
    turned = xp.permute_dims(first, tuple(reversed(range(first.ndim))))
    back = xp.permute_dims(turned, tuple(reversed(range(first.ndim))))
    got = library(face, CASE, back, second)
    assert_same_bits(np.asarray(np.from_dlpack(got)), _want(face, dtype), "a view")


# --- PyTorch --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def _tensor(torch: Any, array: np.ndarray) -> Any:
    if array.dtype == BFLOAT16:
        return torch.from_numpy(bits(array).view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def _numpy(torch: Any, tensor: Any) -> np.ndarray:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)
    array = tensor.numpy()
    assert isinstance(array, np.ndarray)
    return array


def test_torch(torch: Any, face: str, dtype: np.dtype) -> None:
    first, second = (_tensor(torch, v) for v in _operands(face, dtype))
    kept = first.clone()
    got = library(face, CASE, first, second)
    assert type(got) is torch.Tensor
    assert got.dtype == first.dtype
    assert got.device == first.device
    assert not got.requires_grad
    assert_same_bits(_numpy(torch, got), _want(face, dtype))
    assert torch.equal(first, kept)
    out = torch.full(CASE.shape(RESULT[face]), 7, dtype=first.dtype)
    assert library(face, CASE, first, second, out=out) is out
    assert_same_bits(_numpy(torch, out), _want(face, dtype), "out=")
    zero = torch.zeros_like(out)
    library(face, CASE, first, second, out=zero, accumulate=True)
    assert_same_bits(_numpy(torch, zero), _want(face, dtype), "accumulate")


def test_torch_layouts(torch: Any, face: str, dtype: np.dtype) -> None:
    """Views, slices, channels-last and expanded tensors; y lies as x lies."""
    want = _want(face, dtype)
    first, second = (_tensor(torch, v) for v in _operands(face, dtype))
    last = first.to(memory_format=torch.channels_last)
    got = library(face, CASE, last, second)
    assert_same_bits(_numpy(torch, got), want, "channels-last")
    if face != "grad_weight":
        assert got.is_contiguous(memory_format=torch.channels_last)
    wide = torch.full((*first.shape[:-1], 2 * first.shape[-1]), float("nan"), dtype=first.dtype)
    wide[..., ::2] = first
    assert_same_bits(_numpy(torch, library(face, CASE, wide[..., ::2], second)), want, "sliced")
    turned = second.permute(*reversed(range(second.ndim))).contiguous()
    turned = turned.permute(*reversed(range(second.ndim)))
    assert_same_bits(_numpy(torch, library(face, CASE, first, turned)), want, "transposed")
    same = first[:1].expand(CASE.n, *first.shape[1:])
    got = library(face, CASE, same, second)
    copied = library(face, CASE, same.clone(memory_format=torch.contiguous_format), second)
    assert_same_bits(_numpy(torch, got), _numpy(torch, copied), "expanded")
    out = torch.full(want.shape[::-1], 7, dtype=first.dtype)
    view = out.permute(*reversed(range(out.ndim)))
    library(face, CASE, first, second, out=view)
    assert_same_bits(_numpy(torch, view), want, "into a transposed view")


def test_torch_gradients_are_refused(torch: Any, face: str) -> None:
    """These functions record nothing, so a tensor that records must be detached by its owner."""
    want = _want(face, FLOAT32)
    for turn in range(2):
        pair = [_tensor(torch, v) for v in _operands(face, FLOAT32)]
        pair[turn].requires_grad_()
        with pytest.raises(TypeError, match=r"detach|grad"):
            library(face, CASE, *pair)
        pair[turn] = pair[turn].detach()
        assert_same_bits(_numpy(torch, library(face, CASE, *pair)), want)
    pair = [_tensor(torch, v) for v in _operands(face, FLOAT32)]
    out = torch.zeros(want.shape, requires_grad=True)
    with pytest.raises(TypeError, match=r"detach|grad"):
        library(face, CASE, *pair, out=out)
    assert not out.detach().any()


def test_torch_parameter_without_gradient(torch: Any, face: str) -> None:
    pair = [
        torch.nn.Parameter(_tensor(torch, v), requires_grad=False) for v in _operands(face, FLOAT32)
    ]
    assert_same_bits(_numpy(torch, library(face, CASE, *pair)), _want(face, FLOAT32))


def test_torch_counts_writes(torch: Any, face: str) -> None:
    """PyTorch notices when a tensor that backward needs was overwritten - also by us."""
    pair = [_tensor(torch, v) for v in _operands(face, FLOAT32)]
    out = torch.zeros(CASE.shape(RESULT[face]))
    before = out._version
    library(face, CASE, *pair, out=out)
    assert out._version > before
    assert [v._version for v in pair] == [0, 0]


@pytest.mark.parametrize("turn", [0, 1])
def test_torch_lazy_conjugates_and_negatives(torch: Any, face: str, turn: int) -> None:
    """The bits `conj` and `neg` change what the memory means: honoured or refused."""
    plain = _operands(face, COMPLEX64)
    for view in ("conj", "neg", "imag"):
        pair = [_tensor(torch, v) for v in plain]
        if view == "conj":
            pair[turn] = pair[turn].conj()
            assert pair[turn].is_conj()
        else:
            pair = [v.conj().imag if view == "imag" else v for v in pair]
            if view == "neg":
                pair = [torch._neg_view(v) if j == turn else v for j, v in enumerate(pair)]
            assert pair[turn].is_neg()
        meant = [_numpy(torch, v) for v in pair]
        want = cast(exact(face, CASE, *meant), meant[0].dtype)
        try:
            got = library(face, CASE, *pair)
        except REFUSALS:
            continue
        assert_same_bits(_numpy(torch, got), want, view)


def test_torch_lazy_out(torch: Any, face: str) -> None:
    pair = [_tensor(torch, v) for v in _operands(face, COMPLEX64)]
    want = _want(face, COMPLEX64)
    for out in (torch.zeros(want.shape, dtype=torch.complex64).conj(),
                torch._neg_view(torch.zeros(want.shape, dtype=torch.complex64))):  # fmt: skip
        try:
            library(face, CASE, *pair, out=out)
        except REFUSALS:
            assert not out.resolve_conj().resolve_neg().any()
        else:
            assert_same_bits(_numpy(torch, out), want)


def test_torch_refuses_what_has_no_plain_memory(torch: Any, face: str) -> None:
    first, second = (_tensor(torch, v) for v in _operands(face, FLOAT32))
    for strange in (
        torch.empty(first.shape, device="meta"),
        first.to_sparse(),
        torch.zeros(first.shape, dtype=torch.int32),
        torch.zeros(first.shape, dtype=torch.float8_e4m3fn),
    ):
        with pytest.raises(REFUSALS):
            library(face, CASE, strange, second)
    assert_same_bits(_numpy(torch, library(face, CASE, first, second)), _want(face, FLOAT32))


def test_torch_empty(torch: Any) -> None:
    case = parse("n0 a2>b3 i5x4 k3x2")
    x, w, dy = (torch.ones(case.shape(s)) for s in "xwy")
    assert library("forward", case, x, w).shape == (0, 3, 3, 3)
    assert library("grad_input", case, dy, w).shape == x.shape
    dw = library("grad_weight", case, x, dy)
    assert dw.shape == w.shape
    assert not dw.any()


# --- JAX ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jax() -> Any:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return pytest.importorskip("jax")


def test_jax(jax: Any, face: str, dtype: np.dtype) -> None:
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        first, second = (jax.numpy.asarray(v) for v in _operands(face, dtype))
        assert first.dtype == dtype
        got = library(face, CASE, first, second)
        assert isinstance(got, jax.Array)
        assert got.devices() == first.devices()
        assert_same_bits(np.asarray(got), _want(face, dtype))
        for before, after in zip(_operands(face, dtype), (first, second), strict=True):
            assert_same_bits(np.asarray(after), before, "inputs")


def test_jax_arrays_are_never_written(jax: Any, face: str) -> None:
    first, second = (jax.numpy.asarray(v) for v in _operands(face, FLOAT32))
    out = jax.numpy.zeros(CASE.shape(RESULT[face]), np.float32)
    for operands in ((first, second), _operands(face, FLOAT32)):
        for accumulate in (False, True):
            with pytest.raises(TypeError) as caught:
                library(face, CASE, *operands, out=out, accumulate=accumulate)
            assert caught.value.argument == "out"
            assert not np.asarray(out).any()
    mine = np.zeros(out.shape, np.float32)
    try:
        library(face, CASE, first, second, out=mine)
    except TypeError:
        assert not mine.any()
    else:
        assert_same_bits(mine, _want(face, FLOAT32), "JAX operands into a NumPy array")


def test_jax_tracers_are_refused(jax: Any, face: str) -> None:
    first, second = (jax.numpy.asarray(v) for v in _operands(face, FLOAT32))
    with pytest.raises(TypeError):
        jax.jit(lambda p, q: library(face, CASE, p, q))(first, second)


# --- anything, and mixtures -----------------------------------------------------------------------


def test_bare_producers(face: str) -> None:
    """An object with nothing but __dlpack__: the result is at least such an object too."""
    for dtype in (FLOAT32, FLOAT64, COMPLEX64):
        first, second = (Producer(v) for v in _operands(face, dtype))
        got = np.asarray(np.from_dlpack(library(face, CASE, first, second)))
        assert_same_bits(got, _want(face, dtype))


def test_mixed_libraries(torch: Any, face: str) -> None:
    """Operands of two libraries: refused, or right and of the kind of one of them."""
    want = _want(face, FLOAT32)
    plain = _operands(face, FLOAT32)
    tensors = [_tensor(torch, v) for v in plain]
    for pair in ((plain[0], tensors[1]), (tensors[0], plain[1]), (plain[0], Producer(plain[1]))):
        try:
            got = library(face, CASE, *pair)
        except TypeError:
            continue
        assert isinstance(got, (np.ndarray, torch.Tensor))
        got = got if isinstance(got, np.ndarray) else _numpy(torch, got)
        assert_same_bits(got, want)


def test_numpy_relatives(tmp_path: Any, face: str) -> None:
    """Memory maps are arrays; what a mask hides is nobody's business here."""
    plain = _operands(face, FLOAT32)
    mapped = []
    for j, array in enumerate(plain):
        file = tmp_path / f"{j}.npy"
        np.save(file, array)
        mapped.append(np.load(file, mmap_mode="r"))
    got = library(face, CASE, *mapped)
    assert isinstance(got, np.ndarray)
    assert_same_bits(np.asarray(got), _want(face, FLOAT32))
    masked = np.ma.masked_array(plain[0], mask=plain[0] > 0)
    try:
        got = library(face, CASE, masked, plain[1])
    except REFUSALS:
        pass
    else:
        assert same_bits(np.asarray(got), _want(face, FLOAT32)), "a mask changes nothing here"


def test_results_are_numpy_for_numpy(face: str, dtype: np.dtype) -> None:
    got = library(face, CASE, *_operands(face, dtype))
    assert type(got) is np.ndarray
    assert got.dtype == dtype
    assert got.flags.owndata or got.base is not None


def test_faces_are_functions_with_names() -> None:
    for face in (*FACES, "explain", "build_info"):
        function = getattr(unshared, face)
        assert function.__doc__, face
    assert issubclass(unshared.Error, Exception)
