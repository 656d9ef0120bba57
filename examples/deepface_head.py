"""DeepFace's three local layers at their real sizes: memory and time, against unfold + bmm.

    python examples/deepface_head.py              forward and backward at batch 32
    python examples/deepface_head.py --batch 1    one face

Layers L4, L5, L6 of Taigman et al., 2014, in the sizes of the public weights: 73 million parameters
and no weight shared. unfold + bmm, the usual recipe, first writes every window of x to memory, and
keeps them all for backward. Each runs in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing as mp
import os
import resource
import time
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

from unshared.torch import LocallyConnected2d

# channels in, channels out, input size, kernel, stride
LAYERS = [(16, 16, 63, 9, 1), (16, 16, 55, 7, 2), (16, 16, 25, 5, 1)]
GIB = 2**30


class UnfoldBmm(nn.Module):
    """A local layer as one writes it without a library: all windows, then one product per place."""

    def __init__(self, a: int, b: int, size: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.out = kernel, stride, (size - kernel) // stride + 1
        bound = 1 / math.sqrt(a * kernel**2)
        weight = torch.empty(self.out**2, a * kernel**2, b)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(b, self.out, self.out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        windows = nn.functional.unfold(x, self.kernel, stride=self.stride)  # (N, taps, places)
        y = torch.bmm(windows.permute(2, 0, 1), self.weight)  # (places, N, b)
        return y.permute(1, 2, 0).reshape(len(x), -1, self.out, self.out) + self.bias


def expected_peak(batch: int) -> float:
    """Bytes that unfold + bmm will hold at once, about: weights, gradients, windows twice."""
    places = [((size - k) // s + 1) ** 2 * a * k**2 for a, _, size, k, s in LAYERS]
    weights = sum(p * b for p, (_, b, *_) in zip(places, LAYERS, strict=True))
    return 4.0 * (2 * weights + batch * (sum(places) + max(places)))


def measure(kind: type[nn.Module], batch: int, threads: int, results: Connection) -> None:
    """Time one forward and backward (the better of two), and the memory at its peak."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    layers = [layer for sizes in LAYERS for layer in (kind(*sizes), nn.ReLU())]
    model = nn.Sequential(*layers)
    a, _, size, *_ = LAYERS[0]
    x = torch.randn(batch, a, size, size, requires_grad=True)
    best = [math.inf, math.inf]
    for _ in range(2):
        model.zero_grad()
        start = time.perf_counter()
        y = model(x)
        middle = time.perf_counter()
        y.sum().backward()
        spent = middle - start, time.perf_counter() - middle
        best = min(best, list(spent), key=sum)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.send((*best, peak * 1024, floor * 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32, help="faces at once (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    weights = sum(LocallyConnected2d(*sizes, device="meta").weight.numel() for sizes in LAYERS)
    print(f"L4, L5, L6 of DeepFace: {weights / 1e6:.1f} M weights, {4 * weights / GIB:.2f} GiB")
    print(f"batch {args.batch}, {args.threads} thread(s), float32\n")
    print(f"{'':<16}{'forward':>10}{'backward':>10}{'peak memory':>14}")
    for name, kind in (("unshared", LocallyConnected2d), ("unfold + bmm", UnfoldBmm)):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        need = expected_peak(args.batch)
        if kind is UnfoldBmm and need > 0.8 * available:
            print(
                f"{name:<16}left out: it needs about {need / GIB:.1f} GiB, and "
                f"{available / GIB:.1f} GiB are free; try a smaller --batch"
            )
            continue
        context = mp.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=measure, args=(kind, args.batch, args.threads, sender))
        child.start()
        sender.close()
        try:
            forward, backward, peak, floor = receiver.recv()
        except EOFError:
            print(f"{name:<16}ended early (out of memory?)")
            continue
        finally:
            child.join()
        print(
            f"{name:<16}{forward:>8.2f} s{backward:>8.2f} s{peak / GIB:>10.2f} GiB, "
            f"{floor / GIB:.2f} of them PyTorch itself"
        )


if __name__ == "__main__":
    main()
