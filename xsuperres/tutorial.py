"""Real climate data to learn and test with.

Two data sets ship inside the package and need no network. Others are downloaded once, checked
against a sha256, and kept in a cache folder: the argument `cache_dir`, else the environment
variable ``XSUPERRES_CACHE``, else the folder of the operating system for caches.

This module imports pooch only when something is to be downloaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import xarray as xr

from xsuperres.errors import TutorialDataError, unknown_name
from xsuperres.options import cache_folder

__all__ = ["RemoteFile", "list_datasets", "open_dataset"]


EMBEDDED = {
    "era5_global_1deg": ("ERA5, global, 1 degree, 24 steps in March 2026: tas, pr, psl, uas, vas (embedded)"),
    "hadgem2_north_america": ("HadGEM2, North America, annual tas 1860-2099, scenarios A1B and E1 (embedded)"),
}


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A netCDF-4 file on the web, pinned by its hash.

    Attributes
    ----------
    url : str
        Where the file lies, at a fixed version.
    sha256 : str
        Hexadecimal digest of the file.
    description : str
        One line for `list_datasets`.
    """

    url: str
    sha256: str
    description: str


REMOTE = {
    "ersst_v5_monthly": RemoteFile(
        url=(
            "https://github.com/xarray-contrib/xarray-tutorial/raw/"
            "54df4e2fc01e51905210793f7aa01df0d87be86b/data/sst.mnmean.nc"
        ),
        sha256="eade01e2085d841f2ff94fa6886b08a65c5018f576b066c57880726006f28ba6",
        description="NOAA ERSST v5, global, 2 degrees, monthly sst with land as NaN (download)",
    ),
}


def list_datasets() -> dict[str, str]:
    """Names that `open_dataset` knows, each with a one-line description.

    Returns
    -------
    dict of str to str
        The embedded data sets first.

    Examples
    --------
    >>> for name in list_datasets():
    ...     print(name)
    era5_global_1deg
    hadgem2_north_america
    ersst_v5_monthly
    """
    return EMBEDDED | {name: remote.description for name, remote in REMOTE.items()}


def open_dataset(
    name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progressbar: bool = False,
) -> xr.Dataset:
    """Open a tutorial data set by name, lazily.

    Parameters
    ----------
    name : str
        One of `list_datasets`.
    cache_dir : path, optional
        Folder for downloads. Default: the environment variable ``XSUPERRES_CACHE``, else the
        cache folder of the operating system. Unused by the embedded data sets.
    progressbar : bool
        Show a progress bar while downloading.

    Returns
    -------
    xarray.Dataset
        Values are read when they are used; ``.chunk()`` makes it a dask data set. The embedded
        sets have float32 variables with dims (..., time, lat, lon) and CMIP names and units, and
        carry the 2-D coordinates `elevation` (m) and `land_fraction` (1). Cell bounds are
        coordinates too.

    Raises
    ------
    UnknownNameError
        `name` is not one of `list_datasets`.
    TutorialDataError
        The download failed, or its content is not what was expected.

    Examples
    --------
    >>> ds = open_dataset("era5_global_1deg")
    >>> list(ds.data_vars)
    ['tas', 'pr', 'psl', 'uas', 'vas']
    >>> dict(ds.tas.sizes)
    {'time': 24, 'lat': 180, 'lon': 360}
    >>> ds.elevation.units, ds.land_fraction.units
    ('m', '1')
    >>> open_dataset("hadgem2_north_america").time.dt.calendar
    '360_day'
    """
    choices = list_datasets()
    if name not in choices:
        raise unknown_name("tutorial data set", name, choices)
    if name in EMBEDDED:
        path = _embedded_path(name)
    else:
        path = _fetch(
            name, REMOTE[name], Path(cache_dir).expanduser() if cache_dir else cache_folder(), progressbar=progressbar
        )
    return _tidy(xr.open_dataset(path, engine="h5netcdf"))


def _embedded_path(name: str) -> Path:
    """Path of a file of package data: a real one, so that dask workers can open it as well."""
    path = Path(str(resources.files("xsuperres") / "data" / f"{name}.nc"))
    if not path.is_file():
        raise TutorialDataError(
            f"The embedded data set {name!r} should be at {path}, which is not a file. Reinstall xsuperres, unzipped."
        )
    return path


def _fetch(name: str, remote: RemoteFile, folder: Path, *, progressbar: bool) -> Path:
    """Path of the verified file in the cache. Pooch replaces a cached file with another hash."""
    import pooch

    try:
        path = pooch.retrieve(
            remote.url,
            known_hash=f"sha256:{remote.sha256}",
            fname=f"{name}.nc",
            path=folder,
            progressbar=progressbar,
        )
    except ValueError as error:  # pooch raises it for a hash that differs, and keeps nothing
        raise TutorialDataError(
            f"The file downloaded for {name!r} was refused and deleted: expected sha256 "
            f"{remote.sha256} from {remote.url}. Try again; if it happens again, the file behind "
            "the address has changed: please report it."
        ) from error
    except OSError as error:  # connection, HTTP status, permissions: requests' errors included
        raise TutorialDataError(
            f"Cannot fetch {name!r} from {remote.url} into {folder} ({error}). Without a network, "
            f"put the file there as {name}.nc, or use the data sets that ship with xsuperres: "
            f"{', '.join(EMBEDDED)}."
        ) from error
    return Path(path)


def _tidy(ds: xr.Dataset) -> xr.Dataset:
    """Make bounds and grid mappings coordinates, and forget how the file stored its variables.

    Its packing suits its values only (written again with it, finer extremes overflow) and its
    string and chunk settings suit netCDF only. The units and the calendar of times are kept.
    """
    attrs = [variable.attrs for variable in ds.variables.values()]
    named = {attr[key] for attr in attrs for key in ("bounds", "grid_mapping") if key in attr}
    ds = ds.set_coords([name for name in ds.data_vars if name in named])
    for variable in ds.variables.values():
        kept = {key: variable.encoding.get(key) for key in ("units", "calendar")}
        variable.encoding = {key: value for key, value in kept.items() if value is not None}
    return ds
