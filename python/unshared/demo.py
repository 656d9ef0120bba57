"""The demo: a small locally connected network learns handwritten digits, with NumPy alone.

It is trained beside the same network with shared weights, an ordinary convolution. All that the
layers need is `forward`, `grad_weight` and `grad_input`; the rest is a loss, an optimiser and a
picture of what was learned. The packages imported below are the extra `demo`; if one is missing,
`__main__` says so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import unshared

Array = npt.NDArray[np.float32]
BATCH = 64
NAMES = ("local", "shared")
CAPTION = """\
The first layer of two networks that learned 8x8 handwritten digits. Red adds, blue subtracts, \
pale ignores; one scale for all filters.
Every place began with the same four filters and made its own of them. What hangs over the edge of \
the image, sees only blank paper,
or proved useless at its place has faded. A shared filter has to serve every place at once."""


class Layer:
    """A locally connected layer with a bias or, with `shared`, the convolution it generalises.

    The shared weight is stored once, (C_out, C_in, KH, KW), and handed over as a view that repeats
    it at every place: zero strides, no copy. Its gradient is the local one summed over the places.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        a: int,
        b: int,
        places: int,
        kernel: int,
        shared: bool,
        **options: Any,
    ) -> None:
        w = rng.normal(0, np.sqrt(0.5 / (a * kernel**2)), (b, a, kernel, kernel)).astype(np.float32)
        self.shape = (places, places, *w.shape)
        self.shared = shared
        # Local layers start as copies of the shared one, so all that differs later was learned.
        self.w: Array = w if shared else np.broadcast_to(w, self.shape).copy()
        self.b: Array = np.zeros((b, 1, 1) if shared else (b, places, places), np.float32)
        self.options = options

    def w_at_places(self) -> Array:
        return np.broadcast_to(self.w, self.shape)

    def forward(self, x: Array) -> Array:
        y: Array = unshared.forward(x, self.w_at_places(), **self.options)
        return y + self.b

    def grad_weight(self, x: Array, dy: Array) -> list[Array]:
        dw: Array = unshared.grad_weight(x, dy, self.shape[4:], **self.options)
        db: Array = dy.sum(axis=0)
        if self.shared:
            return [dw.sum(axis=(0, 1)), db.sum(axis=(1, 2), keepdims=True)]
        return [dw, db]

    def grad_input(self, dy: Array, size: tuple[int, ...]) -> Array:
        dx: Array = unshared.grad_input(dy, self.w_at_places(), size, **self.options)
        return dx


class Network:
    """Three layers, ReLU between them: 8x8 places, then 4x4, then one that names the digit."""

    def __init__(self, seed: int, shared: bool, num_threads: int | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.layers = [
            Layer(rng, 1, 4, 8, 5, shared, padding=2, num_threads=num_threads),
            Layer(rng, 4, 16, 4, 3, shared, padding=1, stride=2, num_threads=num_threads),
            # A dense layer is a local layer with one place, whose kernel spans the whole of x.
            Layer(rng, 16, 10, 1, 4, shared, num_threads=num_threads),
        ]
        self.parameters = [p for layer in self.layers for p in (layer.w, layer.b)]

    def forward(self, x: Array) -> list[Array]:
        """What each layer sees, and last the scores, (N, 10, 1, 1)."""
        seen = [x]
        for layer in self.layers[:-1]:
            seen.append(np.maximum(layer.forward(seen[-1]), 0))
        return [*seen, self.layers[-1].forward(seen[-1])]

    def gradients(self, x: Array, digits: npt.NDArray[np.int64]) -> list[Array]:
        """Gradients of the mean cross entropy, in the order of `parameters`."""
        *seen, scores = self.forward(x)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(x)), digits] -= 1
        dy = p / len(x)
        found: list[Array] = []
        for layer, x in zip(self.layers[::-1], seen[::-1], strict=True):
            found = layer.grad_weight(x, dy) + found
            if layer is not self.layers[0]:
                dy = layer.grad_input(dy, x.shape[2:]) * (x > 0)
        return found

    def accuracy(self, x: Array, digits: npt.NDArray[np.int64]) -> float:
        return float(np.mean(self.forward(x)[-1].argmax(axis=1).ravel() == digits))


class Adam:
    """Adam with a linearly falling rate; the decay fades every weight that no gradient holds up."""

    def __init__(
        self, parameters: list[Array], steps: int, rate: float = 0.02, decay: float = 0.3
    ) -> None:
        self.parameters, self.steps, self.rate, self.decay = parameters, steps, rate, decay
        self.mean = [np.zeros_like(p) for p in parameters]
        self.square = [np.zeros_like(p) for p in parameters]
        self.taken = 0

    def step(self, gradients: list[Array]) -> None:
        rate = self.rate * (1 - self.taken / self.steps)
        self.taken += 1
        for p, g, m, v in zip(self.parameters, gradients, self.mean, self.square, strict=True):
            m += 0.1 * (g - m)
            v += 0.01 * (g * g - v)
            m_hat, v_hat = m / (1 - 0.9**self.taken), v / (1 - 0.99**self.taken)
            p -= rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + self.decay * p)


def train(
    network: Network, split: list[Any], epochs: int, seed: int
) -> Iterator[tuple[float, float]]:
    """Train in place; after each epoch yield its seconds of training and the test accuracy."""
    x, x_test, digits, digits_test = split
    rng = np.random.default_rng(seed)
    adam = Adam(network.parameters, epochs * -(-len(x) // BATCH))
    for _ in range(epochs):
        start = time.perf_counter()
        order = rng.permutation(len(x))
        for batch in (order[i : i + BATCH] for i in range(0, len(x), BATCH)):
            adam.step(network.gradients(x[batch], digits[batch]))
        yield time.perf_counter() - start, network.accuracy(x_test, digits_test)


def tile(images: Array, gap: int) -> Array:
    """R rows of C images, from (..., R, C, H, W), as one image with blank gaps between them."""
    *lead, r, c, h, w = images.shape
    room = [(0, 0)] * (images.ndim - 2) + [(0, gap)] * 2
    spaced = np.pad(images, room, constant_values=np.nan).swapaxes(-3, -2)
    return spaced.reshape(*lead, r * (h + gap), c * (w + gap))[..., :-gap, :-gap]


def picture(
    networks: dict[str, Network], start: Array, ink: Array, curves: dict[str, list[float]]
) -> Figure:
    """The first layer's filters at all 64 places, beside where they began and what sharing made."""
    local, shared = (networks[name].layers[0].w for name in NAMES)
    limit = float(np.quantile(np.abs(local), 0.99))  # one colour scale for every filter
    colours: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}

    figure = Figure(figsize=(14, 10), dpi=120)
    left = figure.add_gridspec(1, 1, left=0.03, right=0.575, bottom=0.14, top=0.9)
    right = figure.add_gridspec(3, 2, left=0.605, right=0.93, bottom=0.14, top=0.9, hspace=0.25)
    figure.text(0.03, 0.95, "Every place learns its own filters", fontsize=22, weight="bold")
    figure.text(0.03, 0.022, CAPTION, fontsize=11, color="#333333", linespacing=1.5)

    def panel(where: Any, title: str, image: Array, margin: float = 1, **style: Any) -> Any:
        axes = figure.add_subplot(where)
        axes.set_title(title, loc="left", fontsize=11.5)
        drawn = axes.imshow(image, interpolation="nearest", **style)
        h, w = image.shape
        axes.set(xlim=(-margin - 0.5, w + margin - 0.5), ylim=(h + margin - 0.5, -margin - 0.5))
        axes.set(xticks=[], yticks=[], facecolor="#dcdcdc")
        axes.spines[:].set_color("#bbbbbb")
        axes.set_anchor("NW")
        return drawn

    places = tile(local.reshape(8, 8, 2, 2, 5, 5), 1)
    title = f"Local: four filters at each of 64 places, {local.size} weights"
    overview = panel(left[0], title, tile(places, 3), 2, **colours).axes
    panel(right[0, 0], "Where all began", tile(start.reshape(2, 2, 5, 5), 1), **colours)
    once = tile(shared.reshape(2, 2, 5, 5), 1)
    drawn = panel(right[0, 1], f"Shared: {shared.size} weights", once, **colours)
    for column, (name, row, col) in enumerate((("A", 3, 0), ("B", 4, 4))):
        panel(right[1, column], f"Local, at place {name}", places[row, col], **colours)
        corner = (14 * col - 2, 14 * row - 2)  # a place is 11 wide, and 3 from the next
        overview.add_patch(Rectangle(corner, 14, 14, fill=False, linewidth=1.8))
        overview.annotate(name, corner, (3, -12), textcoords="offset points", weight="bold")
    figure.colorbar(drawn, cax=figure.add_axes((0.945, 0.413, 0.01, 0.487)), extend="both")

    panel(right[2, 0], "Where the ink is", ink, 0, cmap="Greys")
    axes = figure.add_subplot(right[2, 1], xlabel="epoch")
    axes.set_title("Test accuracy, %", loc="left", fontsize=11.5)
    for (name, curve), colour in zip(curves.items(), ("#b2182b", "#777777"), strict=True):
        axes.plot(range(1, len(curve) + 1), np.multiply(curve, 100), ".-", color=colour, label=name)
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m unshared demo",
        description="Train a small locally connected network on real handwritten digits, beside "
        "the same network with shared weights, and draw the filters it learned.",
    )
    parser.add_argument("--epochs", type=int, default=40, help="passes over the data (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split, weights and batches (%(default)s)"
    )
    parser.add_argument("--threads", type=int, help="the result is the same for any number")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("unshared-demo.png"),
        metavar="FILE",
        help="the picture, a PNG (%(default)s)",
    )
    args = parser.parse_args(argv)
    if args.epochs < 1 or (args.threads is not None and args.threads < 1):
        parser.error("--epochs and --threads must be at least 1")
    if args.output.suffix != ".png" or not args.output.parent.is_dir():
        parser.error(f"--output must name a .png file in an existing folder, not {args.output}")

    data = load_digits()
    x = (data.images[:, None] / 16).astype(np.float32)
    split = train_test_split(
        x, data.target, test_size=0.3, stratify=data.target, random_state=args.seed
    )

    networks = {name: Network(args.seed, name == "shared", args.threads) for name in NAMES}
    start = networks["shared"].layers[0].w.copy()
    curves: dict[str, list[float]] = {}
    table = Table("weights", box=SIMPLE_HEAD)
    for column in ("parameters", "test accuracy", "ms per epoch"):
        table.add_column(column, justify="right")
    with Progress(
        TextColumn("{task.description:>6}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    ) as progress:
        for name, network in networks.items():
            task = progress.add_task(name, total=args.epochs, note="")
            seconds, curves[name] = [], []
            for spent, accuracy in train(network, split, args.epochs, args.seed):
                seconds.append(spent)
                curves[name].append(accuracy)
                progress.update(task, advance=1, note=f"test accuracy {accuracy:.1%}")
            size = sum(p.size for p in network.parameters)
            table.add_row(name, f"{size}", f"{accuracy:.1%}", f"{1000 * np.median(seconds):.0f}")
    progress.console.print(table)

    picture(networks, start, split[0].mean(axis=(0, 1)), curves).savefig(args.output)
    print(f"The learned filters: {args.output}")
    return 0
