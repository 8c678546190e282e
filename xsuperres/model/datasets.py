"""Small Datasets as tensors and JSON: coordinates and static fields inside a model file.

Labelled arrays in and out. Times become numbers with CF units and calendar; text goes to the header.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

__all__ = ["dataset_from_tensors", "dataset_to_tensors", "plain"]


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
        bare = xr.Variable(variable.dims, variable.values, variable.attrs)  # without encoding
        encoded = xr.conventions.encode_cf_variable(bare, name=str(name)) if timely else bare
        values = np.asarray(encoded.values)
        entry: dict[str, Any] = {"dims": [str(d) for d in variable.dims], "attrs": plain(encoded.attrs)}
        if values.dtype.kind in "OSU":
            entry["text"] = values.astype(str).tolist()
        else:
            entry["time"] = ("cftime" if variable.dtype == object else "numpy") if timely else None
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
            coder = xr.coders.CFDatetimeCoder(use_cftime=entry["time"] == "cftime")
            variable = xr.conventions.decode_cf_variable(name, variable, decode_times=coder).load()
            variable.encoding = {}
        variables[name] = variable
    return xr.Dataset(variables)


def plain(value: Any) -> Any:
    """Return attributes, settings or records as JSON can hold them: numpy's numbers as Python's, others as text."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
