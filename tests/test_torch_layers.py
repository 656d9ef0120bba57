"""The layers: what torch.nn's convolutions do, they do too, and a layer of its own at every place.

Data are small integers wherever results are compared, so that all sums are exact.
"""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import unshared  # noqa: E402
import unshared.torch as ut  # noqa: E402

nn, F = torch.nn, torch.nn.functional
AXES = (1, 2, 3)
KINDS = ("", "Transpose")
LAYERS = [f"LocallyConnected{kind}{axes}d" for kind in KINDS for axes in AXES]
MODES = ("zeros", "reflect", "replicate", "circular")
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
)  # fmt: skip

each_layer = pytest.mark.parametrize("name", LAYERS)
each_axes = pytest.mark.parametrize("axes", AXES)


def ints(*shape: int, dtype: Any = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-4, 5, shape, generator=generator).to(dtype)


def with_integers(module: Any) -> Any:
    """The same module, its parameters small integers in float64."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(ints(*parameter.shape))
    return module


def axes_of(name: str) -> int:
    return int(name[-2])


def make(name: str, **options: Any) -> Any:
    """A layer with 4 > 6 channels on 7 places a side, kernel 3."""
    return getattr(ut, name)(4, 6, 7, 3, **options)


def sample(name: str, *batch: int, dtype: Any = torch.float64) -> Any:
    return ints(*batch, 4, *[7] * axes_of(name), dtype=dtype)


def same_parameters(a: Any, b: Any) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.equal(p, q) for (m, p), (n, q) in pairs)


# --- torch.nn's manners ---------------------------------------------------------------------------


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lazy", ["", "Lazy"])
def test_arguments_are_those_of_torch(lazy: str, kind: str, axes: int) -> None:
    convolution = getattr(nn, f"{lazy}Conv{kind}{axes}d")
    layer = getattr(ut, f"{lazy}LocallyConnected{kind}{axes}d")
    theirs = inspect.signature(convolution.__init__).parameters
    ours = inspect.signature(layer.__init__).parameters
    expected = [name for name in theirs if name != "self"]
    if not lazy:
        expected.insert(2, "input_size")
    assert [name for name in ours if name != "self"] == expected
    for name in set(theirs) & set(ours):
        assert ours[name].default == theirs[name].default, name
        assert ours[name].kind == theirs[name].kind, name
    assert layer.__name__ in ut.__all__


@each_layer
def test_state_is_weight_and_bias(name: str) -> None:
    places = [9 if "Transpose" in name else 5] * axes_of(name)
    layer = make(name)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer.bias.shape == (6, *places)
    assert tuple(layer.output_size) == tuple(places)
    channels = (4, 6) if "Transpose" in name else (6, 4)
    own = [7 if "Transpose" in name else 5] * axes_of(name)
    assert layer.weight.shape == (*own, *channels, *[3] * axes_of(name))
    assert make(name, bias="shared").bias.shape == (6,)
    without = make(name, bias=False)
    assert without.bias is None
    assert list(without.state_dict()) == ["weight"]
    assert dict(layer.named_buffers()) == {}


@each_layer
def test_copies(name: str) -> None:
    """load_state_dict, deepcopy, pickle, torch.save, each with the same results."""
    layer = with_integers(make(name, stride=2))
    x = sample(name, 2)
    want = layer(x)
    other = make(name, stride=2).double()
    assert not torch.equal(other(x), want)
    other.load_state_dict(layer.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match="size mismatch"):
        getattr(ut, name)(4, 6, 9, 3, stride=2).load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="bias"):
        make(name, stride=2, bias=False).load_state_dict(layer.state_dict())
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for again in (
        other,
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
    ):
        assert again is not layer
        assert same_parameters(again, layer)
        assert again.weight.data_ptr() != layer.weight.data_ptr()
        assert torch.equal(again(x), want)
        assert repr(again) == repr(layer)


@each_layer
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_dtypes(name: str, dtype: Any) -> None:
    made = make(name, dtype=dtype)
    assert made.weight.dtype == made.bias.dtype == dtype
    real = torch.view_as_real(made.weight.detach()) if dtype.is_complex else made.weight.detach()
    assert real.float().std() > 0
    reference = with_integers(make(name))
    layer = copy.deepcopy(reference).to(dtype)
    x = sample(name, 1).sign()
    want = reference(x)
    assert want.abs().max() <= 256  # of which bfloat16 holds every integer
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    assert torch.equal(y, want.to(dtype))


@each_layer
def test_meta_device(name: str) -> None:
    with torch.device("meta"):
        layer = make(name, padding=1)
    assert layer.weight.is_meta and layer.bias.is_meta
    assert layer(torch.empty(5, *sample(name).shape, device="meta")).shape[:2] == (5, 6)
    with pytest.raises(ValueError):
        layer(sample(name, 2, dtype=torch.float32))
    layer.to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    assert same_parameters(layer, make(name, padding=1))
    assert layer(sample(name, 2, dtype=torch.float32)).device.type == "cpu"


def _fan_in(name: str, kernel: int, channels: int, stride: int) -> int:
    """Products in one output; transposed: the most of them, taps a stride apart."""
    per_axis = -(-kernel // stride) if "Transpose" in name else kernel
    return channels * per_axis ** axes_of(name)


@each_layer
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 2)])
def test_initialisation(name: str, stride: int, groups: int) -> None:
    """U(-b, b) with b = 1/sqrt(the products in one output): not of all places together."""
    options = {"stride": stride, "groups": groups}
    torch.manual_seed(0)
    layer = make(name, **options)
    bound = 1 / math.sqrt(_fan_in(name, 3, 4 // groups, stride))
    for parameter in layer.parameters():
        largest = parameter.detach().abs().max()
        assert largest <= bound
        enough = parameter.numel() > 500
        assert not enough or largest > 0.97 * bound
        assert not enough or abs(parameter.detach().std() / (bound / math.sqrt(3)) - 1) < 0.15
    if "Transpose" not in name:  # so are those of the convolution
        convolution = getattr(nn, f"Conv{axes_of(name)}d")(4, 600, 3, groups=groups)
        assert abs(convolution.weight.abs().max() / bound - 1) < 0.03
    torch.manual_seed(0)
    assert same_parameters(make(name, **options), layer)
    torch.manual_seed(1)
    layer.reset_parameters()
    again = make(name, **options)
    assert not same_parameters(again, layer)
    torch.manual_seed(1)
    again.reset_parameters()
    assert same_parameters(again, layer)


def test_extra_repr() -> None:
    for layer, text in (
        (
            ut.LocallyConnected2d(3, 8, 32, 3),
            "LocallyConnected2d(3, 8, input_size=(32, 32), kernel_size=(3, 3), stride=(1, 1))",
        ),
        (
            ut.LocallyConnected1d(
                4, 8, 9, 3, 2, (2,), dilation=2, groups=2, bias=False, padding_mode="circular"
            ),
            "LocallyConnected1d(4, 8, input_size=(9,), kernel_size=(3,), stride=(2,), "
            "padding=(2,), dilation=(2,), groups=2, bias=False, padding_mode='circular')",
        ),
        (
            ut.LocallyConnected2d(1, 2, (4, 5), (3, 2), padding="same", bias="shared"),
            "LocallyConnected2d(1, 2, input_size=(4, 5), kernel_size=(3, 2), stride=(1, 1), "
            "padding='same', bias='shared')",
        ),
        (
            ut.LocallyConnectedTranspose1d(4, 2, 5, 3, stride=2, output_padding=1),
            "LocallyConnectedTranspose1d(4, 2, input_size=(5,), kernel_size=(3,), stride=(2,), "
            "output_padding=(1,))",
        ),
    ):
        assert repr(layer) == text


# --- values ---------------------------------------------------------------------------------------


def _function(name: str) -> Any:
    return ut.locally_connected_transpose if "Transpose" in name else ut.locally_connected


@each_layer
@pytest.mark.parametrize("bias", [True, "shared", False])
def test_values_are_those_of_the_function(name: str, bias: Any) -> None:
    options: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    if "Transpose" in name:
        options["output_padding"] = 1
    layer = with_integers(make(name, bias=bias, **options))
    x = sample(name, 2)
    want = _function(name)(x, layer.weight, layer.bias, **options)
    assert torch.equal(layer(x), want)
    assert want.shape[2:] == layer.output_size
    assert torch.equal(layer(x[0]), want[0]), "unbatched"
    if axes_of(name) == 2:
        last = x.contiguous(memory_format=torch.channels_last)
        assert layer(last).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(layer(last), want)


@each_axes
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", ["number", "numbers", "pairs", "same", "valid"])
def test_padding_mode(axes: int, mode: str, padding: str) -> None:
    """As F.pad and no padding; "same" as torch.nn pads, an odd remainder at the high end."""
    size, kernel = (7, 6, 5)[:axes], (4, 3, 2)[:axes]
    uneven = [(2, 1), (0, 3), (1, 0)][:axes]
    given: Any
    given, pairs = {
        "number": (2, [(2, 2)] * axes),
        "numbers": ((1, 2, 0)[:axes], [(p, p) for p in (1, 2, 0)[:axes]]),
        "pairs": (uneven, uneven),
        "same": ("same", [((k - 1) // 2, k // 2) for k in kernel]),
        "valid": ("valid", [(0, 0)] * axes),
    }[padding]
    layer = getattr(ut, f"LocallyConnected{axes}d")(
        2, 3, size, kernel, padding=given, padding_mode=mode
    )
    layer = with_integers(layer)
    x = ints(2, 2, *size)
    sides = [side for pair in reversed(pairs) for side in pair]
    padded = F.pad(x, sides, mode="constant" if mode == "zeros" else mode)
    assert torch.equal(layer(x), ut.locally_connected(padded, layer.weight, layer.bias))
    if padding != "pairs":
        convolution = getattr(nn, f"Conv{axes}d")(
            2, 3, kernel, padding=given, padding_mode=mode
        ).double()
        assert layer(x).shape == convolution(x).shape


def test_training_takes_it_down() -> None:
    torch.manual_seed(0)
    layer = ut.LocallyConnected2d(2, 3, 6, 3, padding=1, padding_mode="reflect")
    target = ut.LocallyConnected2d(2, 3, 6, 3, padding=1)
    x = torch.randn(64, 2, 6, 6)
    with torch.no_grad():
        wanted = target(x)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), wanted)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# --- from and to convolutions ---------------------------------------------------------------------


def _convolutions(axes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for mode in MODES:
        for options in (
            {},
            {"stride": 2, "padding": 1},
            {"padding": "same", "dilation": 2},
            {"padding": "valid", "groups": 2},
            {"stride": 3, "padding": 2, "dilation": 2, "groups": 4, "bias": False},
        ):
            yield "", {**options, "padding_mode": mode}
    for options in (
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": 3, "output_padding": 2, "groups": 2, "dilation": 2},
        {"padding": tuple(range(axes)), "bias": False},
    ):
        yield "Transpose", options


@each_axes
def test_from_conv(axes: int) -> None:
    """Outputs equal the convolution's, and to_conv gives it back."""
    size = (9, 8, 7)[:axes]
    for kind, options in _convolutions(axes):
        convolution = with_integers(getattr(nn, f"Conv{kind}{axes}d")(4, 8, 3, **options)).eval()
        kept = copy.deepcopy(convolution)
        kind_of_layer = getattr(ut, f"LocallyConnected{kind}{axes}d")
        layer = kind_of_layer.from_conv(convolution, size)
        x = ints(2, 4, *size)
        assert type(layer) is kind_of_layer
        assert torch.equal(layer(x), convolution(x)), (kind, options)
        assert not layer.training
        assert layer.weight.dtype == torch.float64
        assert layer.weight.requires_grad
        back = layer.to_conv()
        assert type(back) is type(convolution)
        assert repr(back) == repr(convolution)
        assert same_parameters(back, convolution), (kind, options)
        assert not back.training
        with torch.no_grad():
            layer.weight.add_(1)  # a copy: the convolution stays
        assert same_parameters(convolution, kept)


def test_to_conv_averages() -> None:
    layer = with_integers(ut.LocallyConnected2d(2, 3, 5, (2, 4), padding=(0, 1)))
    convolution = layer.to_conv()
    places = [layer.weight[i, j] for i in range(4) for j in range(4)]
    assert torch.equal(convolution.weight, torch.stack(places).mean(0))  # sixteenths: exact
    assert torch.equal(convolution.bias, layer.bias.mean((1, 2)))
    assert convolution.padding == (0, 1)
    shared = with_integers(ut.LocallyConnectedTranspose1d(2, 3, 4, 3, bias="shared"))
    assert torch.equal(shared.to_conv().bias, shared.bias)
    assert torch.equal(shared.to_conv().weight, shared.weight.mean(0))


def test_conversions_refused() -> None:
    for conv in (nn.Conv1d(2, 3, 3), nn.ConvTranspose2d(2, 3, 3), nn.LazyConv2d(3, 3), None):
        with pytest.raises(ValueError) as caught:
            ut.LocallyConnected2d.from_conv(conv, 8)
        assert isinstance(caught.value, unshared.Error)
        assert caught.value.argument == "conv"
    with pytest.raises(ValueError) as caught:
        ut.LocallyConnected2d.from_conv(nn.Conv2d(2, 3, 9), 8)
    assert isinstance(caught.value, unshared.Error)
    with pytest.raises(ValueError) as caught:
        ut.LocallyConnected1d(2, 3, 8, 3, padding=((1, 0),)).to_conv()
    assert isinstance(caught.value, unshared.Error)
    assert caught.value.argument == "padding"


# --- lazy layers ----------------------------------------------------------------------------------


def _lazy(name: str, **options: Any) -> Any:
    return getattr(ut, "Lazy" + name)(6, 3, **options)


@each_layer
@pytest.mark.parametrize("bias", [True, "shared", False])
def test_lazy(name: str, bias: Any) -> None:
    layer = _lazy(name, bias=bias, stride=2)
    plain = getattr(ut, name)
    assert layer.has_uninitialized_params()
    assert isinstance(layer, plain)
    with pytest.raises((RuntimeError, ValueError)):
        _ = layer.weight.shape
    torch.manual_seed(5)
    y = layer(sample(name, 2, dtype=torch.float32))
    assert type(layer) is plain
    torch.manual_seed(5)
    reference = make(name, bias=bias, stride=2)
    assert same_parameters(layer, reference)
    assert torch.equal(y, reference(sample(name, 2, dtype=torch.float32)))
    assert repr(layer) == repr(reference)
    assert (layer.in_channels, layer.input_size) == (4, (7,) * axes_of(name))
    with pytest.raises(ValueError):
        layer(torch.ones(2, 4, *[8] * axes_of(name)))


@each_layer
def test_lazy_without_a_batch_and_in_another_dtype(name: str) -> None:
    layer = _lazy(name, dtype=torch.float64)
    assert layer(sample(name)).dim() == axes_of(name) + 1
    assert layer.weight.dtype == torch.float64
    assert type(layer) is getattr(ut, name)


@each_layer
def test_lazy_loads_before_its_first_input(name: str) -> None:
    reference = with_integers(make(name))
    layer = _lazy(name).double()
    layer.load_state_dict(reference.state_dict())
    assert torch.equal(layer(sample(name, 2)), reference(sample(name, 2)))
    assert same_parameters(layer, reference)
    assert type(layer) is getattr(ut, name)
    other = _lazy(name).double()
    other.load_state_dict(reference.state_dict())
    with pytest.raises(ValueError) as caught:
        other(ints(2, 4, *[8] * axes_of(name)))
    assert isinstance(caught.value, unshared.Error)
    assert caught.value.argument in ("weight", "bias")
    with pytest.raises(ValueError):
        _lazy(name)(torch.ones(3))


@each_layer
def test_lazy_state_travels(name: str) -> None:
    """An uninitialised state_dict loads into another lazy layer, as torch.nn's do."""
    layer = _lazy(name)
    other = _lazy(name)
    other.load_state_dict(layer.state_dict())
    assert other.has_uninitialized_params()
    again = pickle.loads(pickle.dumps(layer))
    assert again.has_uninitialized_params()
    assert again(sample(name, 2, dtype=torch.float32)).shape[1] == 6


# --- refused --------------------------------------------------------------------------------------


@each_layer
def test_another_input_size_is_refused(name: str) -> None:
    layer = make(name)
    axes = axes_of(name)
    for shape in (
        (2, 4, *[8] * axes), (2, 4, *[7] * (axes - 1), 6), (2, 3, *[7] * axes), (3, *[7] * axes),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            layer(torch.ones(shape))
        error = caught.value
        assert isinstance(error, unshared.Error)
        assert (error.operation, error.argument) == (name, "x")
        built_for = ", ".join(["4"] + ["7"] * axes)
        assert built_for in error.expected and "input_size" in error.expected
        assert str(shape) in error.found
    for shape in ((7,), (1, 2, 4, *[7] * axes)):
        with pytest.raises(ValueError):
            layer(torch.ones(shape))
    for wrong in (None, [1.0], sample(name, 2).numpy()):
        with pytest.raises(TypeError):
            layer(wrong)
    with pytest.raises(TypeError) as caught_type:
        layer(sample(name, 2))
    assert isinstance(caught_type.value, unshared.Error)


CONSTRUCTIONS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, "bias", {"bias": "each"}),
    (ValueError, "padding_mode", {"padding_mode": "mirror"}),
    (ValueError, "kernel_size", {"kernel_size": (3, 3, 3)}),
    (ValueError, "input_size", {"input_size": (7, 7, 7)}),
    (ValueError, "input_size", {"input_size": ()}),
    (ValueError, "stride", {"stride": (1,)}),
    (ValueError, "stride", {"stride": 0}),
    (ValueError, "dilation", {"dilation": -1}),
    (ValueError, "padding", {"padding": -1}),
    (ValueError, "groups", {"groups": 0}),
    (ValueError, "groups", {"groups": 3}),
    (ValueError, "", {"kernel_size": 9}),
    (ValueError, "", {"kernel_size": 0}),
    (ValueError, "in_channels", {"in_channels": -4}),
    (ValueError, "out_channels", {"out_channels": 2**31}),
    (ValueError, "out_channels", {"out_channels": 10**30}),
    (ValueError, "input_size", {"input_size": 2**63}),
    (ValueError, "", {"in_channels": 2**31 - 1, "out_channels": 2**31 - 1, "input_size": 2**20}),
    (TypeError, "in_channels", {"in_channels": 4.0}),
    (TypeError, "out_channels", {"out_channels": None}),
    (TypeError, "out_channels", {"out_channels": True}),
    (TypeError, "groups", {"groups": 1.0}),
    (TypeError, "stride", {"stride": 1.5}),
    (TypeError, "stride", {"stride": (1, None)}),
    (TypeError, "padding", {"padding": "full"}),
    (TypeError, "kernel_size", {"kernel_size": "3"}),
    (TypeError, "dilation", {"dilation": float("nan")}),
]


@pytest.mark.parametrize(
    ("kind", "argument", "change"), CONSTRUCTIONS, ids=[str(row[2]) for row in CONSTRUCTIONS]
)
def test_constructions_refused(kind: type[Exception], argument: str, change: Any) -> None:
    arguments = {"in_channels": 4, "out_channels": 4, "input_size": 7, "kernel_size": 3, **change}
    with pytest.raises(kind) as caught:
        ut.LocallyConnected2d(**arguments)
    error = caught.value
    assert isinstance(error, unshared.Error)
    assert error.operation == "LocallyConnected2d"
    assert argument in ("", error.argument)
    assert error.expected and error.found and error.argument in str(error)


def test_transposed_constructions_refused() -> None:
    for change, kind, argument in (
        ({"padding_mode": "reflect"}, ValueError, "padding_mode"),
        ({"padding": "same"}, ValueError, "padding"),
        ({"output_padding": 1}, ValueError, "output_padding"),
        ({"output_padding": 1.0}, TypeError, "output_padding"),
        ({"output_padding": (0,)}, ValueError, "output_padding"),
        ({"padding": 5}, ValueError, "padding"),
    ):
        with pytest.raises(kind) as caught:
            ut.LocallyConnectedTranspose2d(4, 4, 7, 3, **change)
        assert isinstance(caught.value, unshared.Error)
        assert caught.value.argument == argument
