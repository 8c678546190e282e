"""What an archive holds before its fields do: metadata, coordinates, empty arrays; and how fields are stored in it.

Labelled arrays in; nothing lazy is computed but coordinates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.errors import ConfigError, unknown_name
from xsuperres.fields.grid import find_axes
from xsuperres.inference.journal import IDENTITY
from xsuperres.inference.regions import stored_chunk, with_blocks

__all__ = ["Encoding", "blocks_of", "check_encoding", "fields_of", "write_template"]

Encoding = Mapping[Any, Mapping[str, Any]]

_CF_ENCODINGS = ("units", "calendar", "dtype", "_FillValue", "coordinates", "grid_mapping", "bounds")
_PACKING = ("scale_factor", "add_offset")
_CODECS = {"compressor", "compressors", "filters", "serializer"}


def fields_of(fine: xr.Dataset) -> list[xr.DataArray]:
    """Return what a model made: what is computed and written by region."""
    return [da for da in fine.values() if "xsuperres_model" in da.attrs]


def blocks_of(fine: xr.Dataset, encoding: Encoding) -> dict[str, int]:
    """Return the sizes of the blocks by dim, in the order in which they are written: y and x vary fastest.

    They are those of the dask chunks, but for a smaller last one; the largest where they differ; multiples of the
    chunks that the user wants to be stored.
    """
    fields = fields_of(fine)
    names = find_axes(fields[0])
    lead = [dim for dim in fields[0].dims if dim not in (names.y, names.x)]
    wanted = [_wanted_chunks(da, encoding.get(da.name, {})) for da in fields]
    blocks = {}
    for dim in (*lead, names.y, names.x):
        unit = math.lcm(*(chunks[dim] for chunks in wanted))
        block = max(max(da.chunksizes[dim], default=1) for da in fields)
        blocks[str(dim)] = max(1, min(fine.sizes[dim], -(-block // unit) * unit))
    return blocks


def _wanted_chunks(da: xr.DataArray, encoding: Mapping[str, Any]) -> dict[Any, int]:
    """Return the chunks, or shards, that the user wants to be stored, by dim; 1 where nothing is said."""
    given = encoding.get("shards") or encoding.get("chunks")
    sizes = (1,) * da.ndim if given is None else given
    if np.shape(sizes) != (da.ndim,) or not all(isinstance(n, (int, np.integer)) and n > 0 for n in sizes):
        raise ConfigError(
            f"encoding: chunks and shards of {str(da.name)!r} must be {da.ndim} whole numbers of at least 1, for "
            f"{tuple(map(str, da.dims))}; got {given!r}."
        )
    return dict(zip(da.dims, map(int, sizes), strict=True))


def check_encoding(fine: xr.Dataset, encoding: Encoding) -> None:
    """Refuse an encoding that cannot be written, before anything is.

    Raises
    ------
    ConfigError, UnknownNameError
        With what zarr or xarray say about it.
    """
    from zarr.storage import MemoryStore

    for name in encoding:
        if name not in fine.variables:
            raise unknown_name("variable in encoding", name, fine.variables)
    blocks = blocks_of(fine, encoding)
    try:
        write_template(MemoryStore(), with_blocks(fine, blocks), encoding, {})
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"This encoding cannot be written to Zarr: {error}.") from error


def write_template(store: Any, fine: xr.Dataset, encoding: Encoding, identity: Mapping[str, Any]) -> None:
    """Write metadata, coordinates and empty arrays, in place of those that a killed process may have left."""
    import zarr

    root = zarr.open_group(store, mode="a", zarr_format=3, use_consolidated=False)
    for name in list(root.array_keys()):
        del root[name]
    computed = [da.name for da in fields_of(fine)]
    fine = fine.assign({name: _plain(name, fine.variables[name]) for name in fine.data_vars if name not in computed})
    fine = fine.assign_coords({name: _plain(name, fine.variables[name]) for name in fine.coords})
    fine = fine.assign_attrs({IDENTITY: json.dumps(identity, sort_keys=True)})
    fields = {da.name: _encoding_of(da, encoding.get(da.name, {})) for da in fields_of(fine)}
    others = {name: {**fine[name].encoding, **given} for name, given in encoding.items() if name not in fields}
    fine.to_zarr(store, mode="a", compute=False, consolidated=False, encoding={**fields, **others}, zarr_format=3)


def _plain(name: Hashable, variable: xr.Variable) -> xr.Variable:
    """Return a variable in memory, to be stored in one chunk, an axis without the fill value that CF denies it.

    Of its encodings those of CF stay; others belong to the format that it comes from.
    """
    given = variable.encoding
    encoding = {key: given[key] for key in _CF_ENCODINGS if key in given}
    if any(key in given for key in _PACKING) or np.dtype(given.get("dtype", float)).kind not in "fiu":
        encoding = {key: value for key, value in encoding.items() if key not in ("dtype", "_FillValue")}
    if variable.size > 1:
        encoding["chunks"] = variable.shape
    if variable.dims == (name,):
        encoding["_FillValue"] = None
    plain = variable.compute()
    plain.encoding = encoding
    return plain


def _encoding_of(da: xr.DataArray, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a field is stored.

    Shuffling the bytes of floats before zstd leaves 30 % less of fine temperatures than zstd alone, in less time.
    """
    from zarr.codecs import BloscCodec

    block = given.get("shards") or [sizes[0] for sizes in da.chunks or ()]
    chosen: dict[str, Any] = {"chunks": stored_chunk(block, da.dtype.itemsize)}
    if not _CODECS & set(given):
        chosen["compressors"] = (BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),)
    if "dtype" not in given:
        chosen["_FillValue"] = chosen["fill_value"] = da.dtype.type(np.nan)  # what is not there yet reads as missing
    return {**da.encoding, **chosen, **given}
