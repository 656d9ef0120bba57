"""What a call of `unshared.jax` costs beyond its kernel: python bench/jax_overhead.py

Inside jit: what each further call of a compiled chain of calls adds, on the smallest problem there
is, one product, so that next to nothing of it is kernel. From Python: one call of a compiled
function, of JAX's own addition, and of the face without jit. Medians of repeated runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import unshared.jax


def microseconds(function: Callable[..., Any], *arrays: Any, repeats: int = 2001) -> float:
    """Median time of one call, the first runs left out."""
    times = []
    for _ in range(repeats + 20):
        start = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times[20:])


def chain(calls: int) -> Callable[[Any, Any], Any]:
    def function(x: Any, w: Any) -> Any:
        for _ in range(calls):
            x = unshared.jax.forward(x, w)
        return x

    return jax.jit(function)


def main() -> None:
    x, w = jnp.ones((1, 1, 1)), jnp.ones((1, 1, 1, 1))
    few, many = 20, 420
    each = (microseconds(chain(many), x, w) - microseconds(chain(few), x, w)) / (many - few)
    functions = {
        "from Python, jit of an addition": jax.jit(lambda x, w: x + w[0]),
        "from Python, jit of forward": jax.jit(unshared.jax.forward),
        "from Python, forward without jit": unshared.jax.forward,
    }
    print(f"{'inside jit, forward':36}{each:8.2f} us")
    for name, function in functions.items():
        print(f"{name:36}{microseconds(function, x, w):8.2f} us")


if __name__ == "__main__":
    main()
