"""Everything that xsuperres raises or warns with on purpose.

Each message says what was expected, what came, and what to do. Leaves also subclass the built-in exception
a caller would expect, so that ``except ValueError`` keeps working.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

__all__ = [
    "ConfigError",
    "DataError",
    "GridError",
    "ModelFileError",
    "NoModelError",
    "StaticFieldError",
    "StoreError",
    "TrainingError",
    "TutorialDataError",
    "UnitsError",
    "UnknownNameError",
    "XSuperResError",
    "XSuperResWarning",
    "unknown_name",
    "warn",
]

_PACKAGE = str(Path(__file__).parent)


class XSuperResError(Exception):
    """Root of every error raised on purpose by xsuperres."""


class ConfigError(XSuperResError, ValueError):
    """A setting is out of range, or settings contradict each other."""


class DataError(XSuperResError, ValueError):
    """The values, dtype or amount of the data do not allow what was asked."""


class GridError(XSuperResError, ValueError):
    """Horizontal axes are missing, irregular, or do not fit the scale or the model."""


class StaticFieldError(XSuperResError, ValueError):
    """A static field is missing, incomplete, or on another grid."""


class UnitsError(XSuperResError, ValueError):
    """The units of the data are not those of the model."""


class UnknownNameError(XSuperResError, KeyError):
    """A name is not among the registered choices."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class NoModelError(XSuperResError, LookupError):
    """No model is active for the variable and scale."""


class ModelFileError(XSuperResError, OSError):
    """A model file cannot be read, written or trusted."""


class TrainingError(XSuperResError, RuntimeError):
    """Training could not start, or diverged before any usable state."""


class StoreError(XSuperResError, OSError):
    """An archive cannot be written, gone on with, or mixed with another run."""


class TutorialDataError(XSuperResError, OSError):
    """A tutorial data set cannot be had."""


class XSuperResWarning(UserWarning):
    """Root of every warning issued by xsuperres."""


def warn(message: str) -> None:
    """Warn of the line that called this package, however deep below it this is."""
    frame: FrameType | None = sys._getframe(1)
    level, outermost = 2, 1
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            outermost = level
        frame, level = frame.f_back, level + 1
    warnings.warn(message, XSuperResWarning, stacklevel=outermost + 1)


def unknown_name(kind: str, name: object, choices: Iterable[object]) -> UnknownNameError:
    """Return the error for a name that is not among `choices`, with the closest match.

    Examples
    --------
    >>> print(unknown_name("backbone", "resnt", ["conv", "resnet"]))
    Unknown backbone 'resnt'. Choose from: 'conv', 'resnet'. Did you mean 'resnet'?
    """
    every = list(choices)
    options = sorted(str(choice) for choice in every if choice is not None)
    told = [*map(repr, options), *(["None"] if None in every else [])]
    message = f"Unknown {kind} {name!r}. Choose from: {', '.join(told) or 'nothing'}."
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    return UnknownNameError(message + (f" Did you mean {close[0]!r}?" if close else ""))
