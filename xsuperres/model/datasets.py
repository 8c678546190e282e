"""Small Datasets as tensors and JSON: coordinates and static fields inside a model file.

Labelled arrays in and out. Times become numbers with CF units and calendar; text goes to the header.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

__all__ = ["dataset_from_tensors", "dataset_to_tensors"]


def dataset_to_tensors(ds: xr.Dataset, prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the variables of `ds` as tensors, and a header that is JSON.

    Parameters
    ----------
    prefix : str
        Of the tensors' names.
    """
    tensors, header = {}, {}
    for name, variable in ds.variables.items():
        timely = _is_time(variable)
        plain = xr.Variable(variable.dims, variable.values, variable.attrs)  # without encoding
        encoded = xr.conventions.encode_cf_variable(plain, name=str(name)) if timely else plain
        values = np.asarray(encoded.values)
        entry: dict[str, Any] = {"dims": [str(d) for d in variable.dims], "attrs": _plain(encoded.attrs)}
        if values.dtype.kind in "OSU":
            entry["text"] = values.astype(str).tolist()
        else:
            entry["time"] = timely
            native = values.astype(values.dtype.newbyteorder("="))  # netCDF-3 is big-endian
            tensors[f"{prefix}{name}"] = torch.from_numpy(np.ascontiguousarray(native).copy())
        header[str(name)] = entry
    return tensors, header


def _is_time(variable: xr.Variable) -> bool:
    """Return whether the values are datetimes, durations or cftime objects."""
    if variable.dtype.kind in "mM":
        return True
    return variable.dtype == object and variable.size > 0 and hasattr(variable.values.flat[0], "calendar")


def dataset_from_tensors(tensors: dict[str, torch.Tensor], header: dict[str, Any], prefix: str) -> xr.Dataset:
    """Return the Dataset that `dataset_to_tensors` took apart; every variable is a data variable."""
    variables = {}
    for name, entry in header.items():
        values = np.asarray(entry["text"]) if "text" in entry else tensors[f"{prefix}{name}"].numpy()
        variable = xr.Variable(entry["dims"], values, entry["attrs"])
        if entry.get("time"):
            variable = xr.conventions.decode_cf_variable(name, variable).load()
            variable.encoding = {}
        variables[name] = variable
    return xr.Dataset(variables)


def _plain(attrs: dict[Any, Any]) -> dict[str, Any]:
    """Return attributes as JSON can hold them."""
    plain = {}
    for name, value in attrs.items():
        if isinstance(value, (np.ndarray, np.generic)):
            value = value.tolist()
        plain[str(name)] = value if isinstance(value, (str, int, float, bool, list, type(None))) else str(value)
    return plain
