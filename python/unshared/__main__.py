"""The command line, `python -m unshared VERB`.

Each verb reads its own arguments. `demo` and `bench` live in modules of these names, imported only
when asked for: `info` works in the barest installation, whatever packages the others need.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import packages_distributions, version

import unshared

VERBS = {
    "info": "what was built and what this machine offers",
    "demo": "train a small locally connected network on handwritten digits and draw its filters",
    "bench": "our time, the floor of this machine, and each peer that is installed",
}
FRAMEWORKS = ("torch", "jax", "cupy")


def installed(modules: Sequence[str]) -> dict[str, str]:
    """Versions, read without importing anything: an import takes seconds and may start a device."""
    # CuPy's distribution is named after the CUDA it is for, so ask who provides the module.
    providers = packages_distributions()
    found = {}
    for module in modules:
        versions = {
            version(name) if name == module else f"{name} {version(name)}"
            for name in providers.get(module, [])
        }
        present = importlib.util.find_spec(module) is not None
        found[module] = ", ".join(sorted(versions)) or ("yes" if present else "not installed")
    return found


def cpus() -> str:
    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    return f"{count}" if usable == count else f"{count}, of which this process may use {usable}"


def show(title: str, facts: Mapping[str, object]) -> None:
    print(title)
    for key, value in facts.items():
        if value is None or isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, (list, tuple)):
            value = " ".join(map(str, value)) or "none"
        print(f"  {key.replace('_', ' '):<16} {value}")


def info(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m unshared info", description=VERBS["info"])
    parser.parse_args(argv)
    show("unshared", unshared.build_info())
    show(
        "this machine",
        {
            "system": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
            "CPUs": cpus(),
            "Python": f"{platform.python_version()} ({platform.python_implementation()})",
            "NumPy": version("numpy"),
            **installed(FRAMEWORKS),
        },
    )
    return 0


def delegate(verb: str, argv: Sequence[str]) -> int:
    """Run `unshared.<verb>.main`; a package that is not there is named in one sentence."""
    try:
        module = importlib.import_module(f"unshared.{verb}")
    except ModuleNotFoundError as error:
        if error.name == f"unshared.{verb}":
            message = f"this installation has no {verb}"
        else:
            package = (error.name or "a package").partition(".")[0]
            message = f"{verb} needs {package}, not installed here: pip install 'unshared[{verb}]'"
        print(f"unshared: {message}", file=sys.stderr)
        return 1
    return int(module.main(argv) or 0)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m unshared",
        description="Locally connected layers: convolutions whose weights are not shared.",
        epilog="Each verb has its own --help.",
    )
    verbs = parser.add_subparsers(metavar="VERB", dest="verb")
    for verb, purpose in VERBS.items():
        verbs.add_parser(verb, help=purpose)
    # Only the verb is parsed here; the rest belongs to it.
    verb = parser.parse_args(argv[:1]).verb
    if verb is None:
        parser.print_help()
        return 0
    return info(argv[1:]) if verb == "info" else delegate(verb, argv[1:])


if __name__ == "__main__":
    sys.exit(main())
