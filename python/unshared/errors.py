"""The exceptions of unshared: each is also the built-in exception one would catch for it.

Their text names the operation and the argument, what was expected and how that was derived, and
what was found; the attributes hold the same, for programs.
"""

from __future__ import annotations

from typing import Self

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "DeviceError",
    "Error",
    "UnsupportedError",
]


class Error(Exception):
    """Base of all exceptions that unshared raises of its own accord.

    Attributes
    ----------
    operation : str
        ``"forward"``, ``"grad_input"`` or ``"grad_weight"`` (or what else was asked for).
    argument : str
        The name of the argument at fault.
    expected, found : str
        What it should have been, with the derivation, and what it was.
    """

    operation: str = ""
    argument: str = ""
    expected: str = ""
    found: str = ""

    @classmethod
    def of(cls, operation: str, argument: str, expected: str, found: str) -> Self:
        """Make an error whose text and attributes say these four things."""
        error = cls(
            f"unshared.{operation}: argument '{argument}': expected {expected}, found {found}"
        )
        error.operation, error.argument = operation, argument
        error.expected, error.found = expected, found
        return error


class ArgumentTypeError(Error, TypeError):
    """An argument of the wrong kind: not an array, another dtype, a float for a size."""


class ArgumentValueError(Error, ValueError):
    """An argument whose sizes, memory or place do not fit the others."""


class UnsupportedError(Error, NotImplementedError):
    """A meaningful call that this build or this machine cannot do."""


class DeviceError(Error, RuntimeError):
    """A GPU that refuses work: a failed launch, or an error that earlier work left behind."""
