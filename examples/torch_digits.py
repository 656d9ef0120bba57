"""Handwritten digits with PyTorch: the network of `python -m unshared demo`, as torch.nn modules.

    python examples/torch_digits.py              eager
    python examples/torch_digits.py --compile    the same, through torch.compile

Needs PyTorch and scikit-learn, for its 1797 images of 8x8 pixels; takes seconds on one core.
"""

from __future__ import annotations

import argparse
import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from unshared.torch import LocallyConnected2d


def local(a: int, b: int, kernel: int, size: int, **options: int) -> LocallyConnected2d:
    """A local layer that starts as a convolution and then makes its own of it at every place."""
    convolution = nn.Conv2d(a, b, kernel, **options)
    nn.init.normal_(convolution.weight, std=(0.5 / (a * kernel**2)) ** 0.5)
    nn.init.zeros_(convolution.bias)
    return LocallyConnected2d.from_conv(convolution, size)


def network() -> nn.Sequential:
    """8x8 places, then 4x4, then one that names the digit: a dense layer, local with one place."""
    return nn.Sequential(
        local(1, 4, kernel=5, size=8, padding=2),
        nn.ReLU(),
        local(4, 16, kernel=3, size=8, padding=1, stride=2),
        nn.ReLU(),
        local(16, 10, kernel=4, size=4),
        nn.Flatten(),
    )


def digits(seed: int) -> list[Tensor]:
    """Images and labels to learn from and to be tested with: x, x_test, y, y_test."""
    data = load_digits()
    x = (data.images[:, None] / 16).astype("float32")
    split = train_test_split(x, data.target, test_size=0.3, stratify=data.target, random_state=seed)
    return [torch.from_numpy(part) for part in split]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the data (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images per step (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of split, weights, order (%(default)s)"
    )
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    x, x_test, y, y_test = digits(args.seed)
    model = network()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    run = torch.compile(model, fullgraph=True, dynamic=True) if args.compile else model

    steps = args.epochs * -(-len(x) // args.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, betas=(0.9, 0.99), weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=steps)
    seconds = []
    for _ in range(args.epochs):
        start = time.perf_counter()
        for batch in torch.randperm(len(x)).split(args.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(run(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
        seconds.append(time.perf_counter() - start)

    with torch.no_grad():
        accuracy = (run(x_test).argmax(dim=1) == y_test).float().mean().item()
    epoch = sorted(seconds)[len(seconds) // 2]
    print(model)
    print(f"{parameters} parameters, {'compiled' if args.compile else 'eager'}")
    print(f"test accuracy {accuracy:.1%}")
    print(f"{1000 * epoch:.0f} ms an epoch (median), the first {seconds[0]:.1f} s")


if __name__ == "__main__":
    main()
