"""One small class for named parts: backbones, upsamplers, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from xsuperres.errors import ConfigError, unknown_name

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Names, and their aliases, of the interchangeable parts of one kind.

    Parameters
    ----------
    kind : str
        What is registered, for messages: ``"backbone"``.

    Examples
    --------
    >>> animals = Registry("animal")
    >>> @animals.add("cat", aliases=("felis",))
    ... class Cat: ...
    >>> animals.get("felis") is Cat, animals.canonical("felis"), list(animals)
    (True, 'cat', ['cat'])
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}
        self._aliases: dict[str, str] = {}

    def add(self, name: str, *, aliases: tuple[str, ...] = ()) -> Callable[[T], T]:
        """Return a decorator that registers its object; a duplicate raises and changes nothing."""
        if isinstance(aliases, str):
            raise ConfigError(f"aliases must be a tuple of names, got the text {aliases!r}; write ({aliases!r},).")

        def register(part: T) -> T:
            labels = (name, *aliases)
            taken = [label for label in labels if label in self] + ([name] if len(set(labels)) < len(labels) else [])
            if taken:
                raise ConfigError(f"The {self.kind} name {taken[0]!r} is registered already; choose another name.")
            self._parts[name] = part
            self._aliases.update(dict.fromkeys(aliases, name))
            return part

        return register

    def canonical(self, name: str) -> str:
        """Return the registered name behind `name`, which may be an alias."""
        if name not in self:
            raise unknown_name(self.kind, name, [*self._parts, *self._aliases])
        return self._aliases.get(name, name)

    def get(self, name: str) -> T:
        """Return the part called `name`; a miss lists the choices and the closest one."""
        return self._parts[self.canonical(name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._parts or name in self._aliases)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
