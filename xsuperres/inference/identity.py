"""What tells one run of `downscale_to_zarr` from another: its model, its inputs, its settings.

Labelled arrays in, JSON out. It depends on neither the process, nor the chunks, nor dask's names, nor the version of
this package; of each input eight fields are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.errors import ConfigError
from xsuperres.fields.checks import is_lazy
from xsuperres.fields.field import Field

__all__ = ["difference", "encoding_text", "fingerprint", "identify"]

_SAMPLED = 8  # fields that are read: the first, the last, and evenly between them along the leading dims
_TOLD = {
    "model": "model (digest)",
    "fields": "names, shapes and dtypes of the result",
    "inputs": "coarse data (digest of coordinates and of eight fields)",
    "predictors": "predictors (digest)",
    "fine": "fine coordinates and static fields (digest)",
    "settings": "settings",
}


def identify(
    fine: xr.Dataset, fields: Iterable[Field], predictors: Iterable[Field], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what identifies a run, ready for JSON.

    Parameters
    ----------
    fine : Dataset
        The lazy result, which bears the model's digest, and what goes with it in memory.
    fields, predictors : iterable of Field
        What it is made from.
    settings : mapping
        The other settings that the result depends on.
    """
    results = [da for da in fine.values() if is_lazy(da)]
    beside = fine.drop_vars([da.name for da in results])
    found = {
        "model": results[0].attrs["xsuperres_model"],
        "fields": {
            str(da.name): {**{str(d): n for d, n in da.sizes.items()}, "dtype": str(da.dtype)} for da in results
        },
        "inputs": fingerprint(fields),
        "predictors": fingerprint(predictors),
        "fine": _digest_of(_contents(beside.variables)),
        "settings": dict(settings),
    }
    return dict(json.loads(json.dumps(found, sort_keys=True)))


def fingerprint(fields: Iterable[Field]) -> str:
    """Return a sha256 of names, dims, units, coordinates, and of the values of eight fields spread over each.

    Examples
    --------
    >>> from xsuperres.testing import toy_field
    >>> da = toy_field(time=4, y=4, x=4)
    >>> fingerprint([Field(da)]) == fingerprint([Field(da.copy(deep=True))]) != fingerprint([Field(da + 1)])
    True
    """
    import dask

    parts: list[Any] = []
    for field in fields:
        da = field.array
        about = [str(da.name), list(map(str, da.dims)), list(da.shape), str(da.dtype), str(da.attrs.get("units"))]
        parts += [json.dumps(about), *_contents(da.coords), *(sample.data for sample in _samples(field))]
    return _digest_of(dask.compute(*parts))


def _samples(field: Field) -> list[xr.DataArray]:
    """Return planes (y, x) from the first to the last."""
    da = field.array
    lead = {dim: da.sizes[dim] for dim in field.lead}
    if not all(lead.values()):
        return []
    places = {tuple(round(share * (size - 1)) for size in lead.values()) for share in np.linspace(0, 1, _SAMPLED)}
    return [da.isel(dict(zip(lead, place, strict=True))) for place in sorted(places)]


def _contents(variables: Mapping[Any, Any]) -> list[Any]:
    """Return names, dims and values of coordinates, and of what else goes with fields."""
    ordered = sorted(variables.items(), key=lambda item: str(item[0]))
    return [part for name, v in ordered for part in (json.dumps([str(name), list(map(str, v.dims))]), v.data)]


def _digest_of(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else _content(np.asarray(part)))
    return digest.hexdigest()


def _content(values: np.ndarray) -> bytes:
    """Return the values as bytes that are the same on every machine, of times whatever their resolution."""
    if values.dtype.kind in "mM":
        values = values.astype(f"{values.dtype.kind}8[us]")
    if values.dtype.kind in "OUT":  # dates of other calendars, names
        calendars = {str(getattr(value, "calendar", "")) for value in values.ravel()}
        return "\n".join([*sorted(calendars), *map(str, values.ravel())]).encode()
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"))).tobytes()


def encoding_text(encoding: Mapping[Any, Mapping[str, Any]] | None) -> str | None:
    """Return an encoding as text that is the same in every process: codecs by their settings, not their addresses.

    Raises
    ------
    ConfigError
        If something in it has no settings to tell.

    Examples
    --------
    >>> encoding_text({"tas": {"chunks": (8, 64, 64)}})
    '{"tas": {"chunks": [8, 64, 64]}}'
    """

    def plain(value: Any) -> Any:
        settings = getattr(value, "to_dict", None) or getattr(value, "get_config", None)
        if settings is not None:
            return settings()
        if type(value).__repr__ is object.__repr__:  # it shows an address
            raise ConfigError(
                f"encoding holds {value!r}, which another process could not tell from others; give it as text, or as a "
                "codec that has to_dict() or get_config()."
            )
        return str(value)

    if not encoding:
        return None
    named = {str(name): dict(given) for name, given in encoding.items()}
    return json.dumps(named, default=plain, sort_keys=True)


def difference(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """Return the first thing that differs, as part of a sentence: expected, then got.

    Examples
    --------
    >>> difference({"settings": {"seed": 1, "mask": None}}, {"settings": {"seed": 2, "mask": None}})
    'other settings: it has seed=1, this run seed=2'
    """
    for key, told in _TOLD.items():
        before, now = stored.get(key), given.get(key)
        if before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            first, second = (", ".join(f"{name}={side.get(name)!r}" for name in changed) for side in (before, now))
        else:
            first, second = str(before)[:16], str(now)[:16]
        return f"other {told}: it has {first}, this run {second}"
    return None
