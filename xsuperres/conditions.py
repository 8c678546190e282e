"""Conditions that settings must meet: whole numbers, ranges, flags, bounds.

Each takes a frozen dataclass and the names of fields, raises the error that says what was expected and what came, and
makes numbers of numpy Python's own, so that a model file can hold them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from xsuperres.errors import ConfigError

__all__ = ["at_least", "bounds", "each", "flag", "number"]


def each(setting: Any) -> list[Any]:
    """Return the values of a setting that is one for all variables, or a dict by name."""
    return list(setting.values()) if isinstance(setting, Mapping) else [setting]


def bounds(config: object, name: str) -> None:
    """Check bounds of the variables."""
    given = getattr(config, name)
    for value in each(given):
        if value is not None and not (_is_number(value) and math.isfinite(value)):
            raise ConfigError(f"{type(config).__name__}.{name} must be a finite number, got {value!r}.")
    if isinstance(given, Mapping):
        object.__setattr__(config, name, {str(key): None if v is None else float(v) for key, v in given.items()})
    elif given is not None:
        object.__setattr__(config, name, float(given))


def flag(config: object, *names: str) -> None:
    """Check truth values."""
    for name in names:
        if getattr(config, name) not in (True, False):
            raise ConfigError(f"{type(config).__name__}.{name} must be True or False, got {getattr(config, name)!r}.")
        object.__setattr__(config, name, bool(getattr(config, name)))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def at_least(config: object, least: int, *names: str, optional: bool = False) -> None:
    """Check whole numbers of at least `least`."""
    for name in names:
        value = getattr(config, name)
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ConfigError(f"{type(config).__name__}.{name} must be an integer of at least {least}, got {value!r}.")
        object.__setattr__(config, name, int(value))


def number(config: object, low: float, high: float, *names: str, optional: bool = False) -> None:
    """Check finite numbers between `low` and `high`; a `low` of 0 with an infinite `high` means positive."""
    positive = low == 0 and math.isinf(high)
    for name in names:
        value = getattr(config, name)
        if value is None and optional:
            continue
        if not (_is_number(value) and math.isfinite(value)) or not (value > 0 if positive else low <= value <= high):
            expected = "a positive number" if positive else f"a number between {low} and {high}"
            raise ConfigError(f"{type(config).__name__}.{name} must be {expected}, got {value!r}.")
        object.__setattr__(config, name, float(value))
