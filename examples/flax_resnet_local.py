"""A block of Flax's ResNet18Local, trained with its own ConvLocal and with ours: side by side.

    python examples/flax_resnet_local.py               stages 1 and 4 at a small batch and width
    python examples/flax_resnet_local.py --full 8      stage 4 as in Flax's example, batch 8 (GiBs)

Both start from the same parameters. Each runs in a process of its own, so that peak memory is its
own; times are medians of the steps after the first, which compiles.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

# name: spatial extent, channels, batch; F1 and F4 are 56x56x64 and 7x7x512 in Flax's example
SMALL = {"stage 1, cut down": (28, 32, 8), "stage 4, cut down": (7, 128, 8)}


def train(kind: str, size: int, channels: int, batch: int, steps: int) -> dict[str, Any]:
    import flax.linen as nn
    import jax

    import unshared.linen

    local = {"flax": nn.ConvLocal, "unshared": unshared.linen.ConvLocal}[kind]

    class Block(nn.Module):  # type: ignore[misc]
        """Two local 3x3 layers around a shortcut."""

        @nn.compact  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            y = local(channels, (3, 3), use_bias=False, name="one")(x)
            y = nn.relu(nn.GroupNorm(num_groups=8)(y))
            y = local(channels, (3, 3), use_bias=False, name="two")(y)
            return nn.relu(nn.GroupNorm(num_groups=8)(y) + x)

    key = jax.random.key(0)
    x = jax.random.normal(key, (batch, size, size, channels))
    target = jax.random.normal(jax.random.key(1), x.shape)
    block = Block()
    params = block.init(key, x)

    def loss(params: Any) -> Any:
        return ((block.apply(params, x) - target) ** 2).mean()

    def update(params: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)

    step = jax.jit(update, donate_argnums=0)
    losses, times = [], []
    for _ in range(steps):
        start = time.perf_counter()
        value, params = jax.block_until_ready(step(params))
        times.append(time.perf_counter() - start)
        losses.append(float(value))
    weights = sum(int(p.size) for p in jax.tree.leaves(params))
    return {
        "losses": losses,
        "seconds": statistics.median(times[1:]),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "weights": weights * 4,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--full", type=int, metavar="BATCH", help="stage 4 in full, 7x7x512")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # kind size channels batch
    given = parser.parse_args()
    if given.one:
        kind, *numbers = given.one
        print(json.dumps(train(kind, *map(int, numbers), given.steps)))
        return
    cases = {"stage 4": (7, 512, given.full)} if given.full else SMALL
    print(f"{'block':20}{'layer':12}{'ms a step':>12}{'peak MiB':>10}{'weights MiB':>13}   losses")
    for name, numbers in cases.items():
        results = {}
        for kind in ("flax", "unshared"):
            command = [sys.executable, __file__, "--steps", str(given.steps), "--one", kind]
            ran = subprocess.run(
                [*command, *map(str, numbers)], check=True, capture_output=True, text=True
            )
            result = results[kind] = json.loads(ran.stdout)
            shown = " ".join(f"{loss:.5f}" for loss in result["losses"])
            mib = [result[field] / 2**20 for field in ("peak", "weights")]
            print(
                f"{name:20}{kind:12}{result['seconds'] * 1e3:12.1f}{mib[0]:10.0f}{mib[1]:13.0f}   "
                f"{shown}"
            )
        pairs = zip(*(results[kind]["losses"] for kind in results), strict=True)
        difference = max(abs(p - q) / abs(p) for p, q in pairs)
        print(f"{'':20}losses agree to {difference:.1e}")


if __name__ == "__main__":
    main()
