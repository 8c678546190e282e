"""Vector components: the variables whose sign changes when a field is mirrored.

Fields in; only names are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from xsuperres.config import SamplingConfig
from xsuperres.errors import ConfigError
from xsuperres.fields.field import Field

__all__ = ["mirror_signs"]


def mirror_signs(fields: Sequence[Field], sampling: SamplingConfig) -> dict[str, list[int]]:
    """Return which of the fields change their sign when mirrored, along each axis of ``flip_sign``.

    Components are known by standard name or name; a field that is the only one is taken for one where that is asked.

    Raises
    ------
    ConfigError
        If a vector component would be mirrored without, or there is none among several fields.
    """
    signs: dict[str, list[int]] = {}
    for axis in sampling.flip:
        along = [index for index, field in enumerate(fields) if _is_component(field, axis)]
        if along and axis not in sampling.flip_sign:
            name = fields[along[0]].array.attrs.get("standard_name", fields[along[0]].name)
            raise ConfigError(
                f"{name!r} is a vector component along {axis}: mirroring must change its sign; add "
                f"flip_sign=({axis!r},) to sampling, or leave flips off."
            )
        if axis in sampling.flip_sign:
            if not along and len(fields) > 1:
                like = {"x": "eastward_wind", "y": "northward_wind"}[axis]
                raise ConfigError(
                    f"flip_sign=({axis!r},) expects a vector component along {axis}, but none of "
                    f"{[field.name for field in fields]} is known as one; give it a standard_name such as {like!r}, or "
                    f"take {axis!r} out of flip_sign."
                )
            signs[axis] = along or [0]
    return signs


def _is_component(field: Field, axis: str) -> bool:
    name, short = str(field.array.attrs.get("standard_name", "")), str(field.name).lower()
    word, grid, names = {
        "x": ("eastward", "x_", ("u", "ua", "uas", "u10", "u10m")),
        "y": ("northward", "y_", ("v", "va", "vas", "v10", "v10m")),
    }[axis]
    return word in name or name.startswith(grid) or short in names
