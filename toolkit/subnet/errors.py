"""What can be wrong with the input, each as one line that says what to do.

Every error carries where it was seen, what was found, what was expected and the next step, and
prints as a single line. The command line turns them into exit code 2; anything else that escapes
is a defect of the toolkit.
"""

from __future__ import annotations

from pathlib import Path


class SubnetError(Exception):
    """Input that cannot be used.

    Args:
        found: The fact, in plain words, with the values received.
        path: File or directory in which it was seen.
        expected: What would have been right.
        fix: The next step for the user.

    Example:
        >>> print(InputError("density is 1.5", expected="0 < density <= 1", fix="try 0.05"))
        density is 1.5; expected 0 < density <= 1; try 0.05
    """

    def __init__(
        self,
        found: str,
        *,
        path: str | Path | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.found = found
        self.path = None if path is None else Path(path)
        self.expected = expected
        self.fix = fix
        parts = [found if path is None else f"{path}: {found}"]
        if expected:
            parts.append(f"expected {expected}")
        if fix:
            parts.append(fix)
        super().__init__(" ".join("; ".join(parts).split()))


class InputError(SubnetError, ValueError):
    """A value, a setting or the content of a file is not usable."""


class FileFormatError(InputError):
    """A file is truncated, corrupt, or not in the format its name promises."""


class UnsafeFileError(InputError):
    """Reading the file would execute code that came with it (a pickle, remote code)."""


class NotComparableError(InputError):
    """Two things were asked to be compared that have no common ground (base, shapes, modules)."""


class UnknownLanguageError(InputError):
    """A label that resolves to no language, or two labels that resolve to the same one."""


class MissingInputError(SubnetError, LookupError):
    """A file, a directory or a part of a checkpoint that the request needs is not there."""


class OutputError(SubnetError, RuntimeError):
    """The result cannot be written where it was asked to go."""


class DivergedError(SubnetError, ArithmeticError):
    """A training whose loss is no longer finite."""
