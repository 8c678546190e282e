"""Whether float32 is float32 on a GPU, or its products are rounded to TF32: torch has one switch for the whole process.

Torch only. Blocks of several threads that want the same share the switch, one that wants the other way waits; what the
user has set is there again when the last is done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["products"]


class _Switch:
    """torch's settings of convolutions and matrix products."""

    def __init__(self) -> None:
        self.free = threading.Condition()
        self.users, self.tf32 = 0, False
        self.before: list[Any] = []

    @contextmanager
    def held(self, tf32: bool) -> Iterator[None]:
        """Keep the switch one way."""
        with self.free:
            self.free.wait_for(lambda: not self.users or self.tf32 == tf32)
            if not self.users:
                self.tf32, self.before = tf32, [getattr(owner, name) for owner, name, _ in _settings()]
                for owner, name, values in _settings():
                    setattr(owner, name, values[tf32])
            self.users += 1
        try:
            yield
        finally:
            with self.free:
                self.users -= 1
                if not self.users:
                    for (owner, name, _), value in zip(_settings(), self.before, strict=True):
                        setattr(owner, name, value)
                    self.free.notify_all()


def _settings() -> list[tuple[Any, str, tuple[Any, Any]]]:
    """Return owner, name, and the values that mean float32 and TF32; torch 2.9 renamed them, and refuses a mixture."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(convolutions, "conv"):
        return [(owner, "fp32_precision", ("ieee", "tf32")) for owner in (products, convolutions.conv)]
    return [(owner, "allow_tf32", (False, True)) for owner in (products, convolutions)]


_SWITCH = _Switch()


def products(*, tf32: bool) -> Any:
    """Return a context in which products of float32 are rounded to TF32, or are not; it must not be nested."""
    return _SWITCH.held(tf32)
