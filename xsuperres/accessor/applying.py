"""Applying a model: the accessor's methods `downscale`, `downscale_to_zarr` and `describe`.

Heavy modules are imported when a method needs them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from xsuperres.accessor.training import PredictorsLike

if TYPE_CHECKING:
    from xsuperres.accessor.registered import Accessor, T
    from xsuperres.model.artefact import SRModel

__all__ = ["describe", "downscale", "downscale_to_zarr"]


def downscale(
    self: Accessor[T],
    model: SRModel | str | os.PathLike[str] | None = None,
    *,
    scale: int | None = None,
    static: xr.Dataset | xr.DataArray | None = None,
    predictors: PredictorsLike = None,
    members: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str = "auto",
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32",
    compile: bool = False,
    mask: Literal["input", "model"] | None = "model",
    check_range: Literal["warn", "raise", "ignore"] = "warn",
) -> T:
    """Apply a model to these coarse data.

    Parameters
    ----------
    model : SRModel or path, optional
        By default the active model for this variable and `scale`.
    scale : int, optional
        Required without `model`; must be the model's.
    static : Dataset or DataArray, optional
        The model's static fields on the fine grid of this domain; not needed on the training domain.
    predictors : Dataset, DataArray or list of these, optional
        The variables that the network was shown besides, by the same names.
    members : int, optional
        Results that differ by the network's randomness (noise, Monte Carlo dropout), along a new dim `member`.
    seed : int
        Of the members; the same seed gives the same members, however the data are chunked. Random numbers go by
        position along each dim, not by date: give parts that are downscaled one by one a seed each.
    batch_size : int, optional
        Fields that go through the network at once.
    device : str
        "auto", "cpu", "cuda", "cuda:1"; of lazy data it is chosen where they are computed. Of several GPUs each
        process on a host takes another.
    precision : {"fp32", "tf32", "bf16", "fp16"}
        Of the network's arithmetic; "tf32" and "fp16" on GPUs only. Those other than "fp32" are faster, and
        differ from it by up to 0.02 training standard deviations.
    compile : bool
        Whether torch compiles the network, which takes tens of seconds in each process.
    mask : {"input", "model", None}
        Result is NaN where the coarse cell is; "model" also where the training target always was; None: nowhere.
    check_range : {"warn", "raise", "ignore"}
        What to do if too many coarse cells of a variable lie above, or below, the range of the data that the
        model was made from: more than 6 % + 60 % / training fields, each judged by the range of its own cell; on
        an open domain more than a third of that, judged by the range of its latitude, or of all cells where rows
        are no latitudes. Limits are wider than the range where it is that of few values. In-memory data are
        looked at first, lazy ones as they are computed, against all cells of the result: a part alone alarms only
        if it holds too many of those. Each call tells once. On a cluster the client hears of all blocks if it is
        connected when this is called; "raise" stops blocks that begin after its verdict, and warns where that
        comes too late. With ``scheduler="processes"`` (on stderr), and for clients that connect later, each
        process judges by its own share, of a field at least, and warns for itself. Results do not depend on it.

    Returns
    -------
    DataArray or Dataset
        Same dims, horizontal sizes times `scale`, dtype, units and attributes unchanged; lazy if dask-backed.
        Chunked in any way it equals the whole within 1e-5 training standard deviations. A model of explicit pairs
        makes of its coarse variable the target: the result has the target's name, units, standard and long name.
        Data of a larger area than the model's domain are cropped, data on other cells regridded conservatively;
        one line of log says so.

    Raises
    ------
    XSuperResError
        If there is no such model, or grid, units or static fields do not fit; with ``check_range="raise"`` also if
        the data are out of range, for lazy data when they are computed.
    """
    from xsuperres.inference.devices import Execution
    from xsuperres.inference.plan import Options

    options = Options(
        members=members,
        seed=seed,
        batch_size=batch_size,
        execution=Execution(device=device, precision=precision, compile=compile),
        mask=mask,
        check_range=check_range,
    )
    plan = self._plan(model, scale, static=static, predictors=predictors, options=options)
    return self._rebuilt(plan.result(), plan.sources)


def downscale_to_zarr(
    self: Accessor[T],
    store: Any,
    model: SRModel | str | os.PathLike[str] | None = None,
    *,
    scale: int | None = None,
    static: xr.Dataset | xr.DataArray | None = None,
    predictors: PredictorsLike = None,
    members: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str = "auto",
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32",
    compile: bool = False,
    mask: Literal["input", "model"] | None = "model",
    check_range: Literal["warn", "raise", "ignore"] = "warn",
    resume: bool = True,
    encoding: Mapping[Any, Mapping[str, Any]] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    memory_budget: int | None = None,
    progress: bool = True,
) -> T:
    """Apply a model to these coarse data and write the result to Zarr, region by region.

    A call that was interrupted, by a kill or a loss of power even, is gone on with by the same call: what is done
    is recorded in the store, together with digests of model, inputs and settings, and the final arrays are those of
    a call that was never interrupted, byte for byte on the same machine. Of inputs these digests cover names,
    coordinates and eight fields, from the first to the last: values that change elsewhere are not seen. Regions are
    computed by dask's scheduler in force, a distributed client's too, whose workers must see the store.

    Parameters
    ----------
    store : path, URL or Zarr store
        A local folder, ``s3://bucket/fine.zarr`` and whatever else fsspec knows, or a store object of Zarr.
    model : SRModel or path, optional
        By default the active model for this variable and `scale`.
    scale : int, optional
        Required without `model`; must be the model's.
    static, predictors, members, seed, batch_size, device, precision, compile, mask, check_range : optional
        As for `downscale`. A call may be gone on with by another `batch_size`, `device` or `compile`. `check_range`
        looks at data in memory first; lazy data are judged by what all runs of an archive have computed.
    resume : bool
        Go on with the archive of the same run that the store holds, or open it if it is finished. False: refuse
        any store that holds an archive, finished or only begun. Nothing that is there is ever deleted.
    encoding : mapping, optional
        Of variables, as for `Dataset.to_zarr`. By default fields are stored in chunks of 1 to 32 MiB, shuffled and
        compressed with zstd. Integers have their lowest value as `_FillValue`, unsigned ones the highest, if none
        is given.
    storage_options : mapping, optional
        Of the file system behind a URL.
    memory_budget : int, optional
        Bytes of the result that are written at once, and lost when the process dies; by default that of
        `xsuperres.set_options`. Give it a multiple of the workers that a cluster has.
    progress : bool
        Show a progress bar with fields per second and the time left.

    Returns
    -------
    DataArray or Dataset
        The finished archive, opened lazily; dims, units and attributes as from `downscale`, but for tuples and
        arrays among these, which come back as lists. The store holds cell bounds, CF attributes and consolidated
        metadata besides.

    Raises
    ------
    StoreError
        If the store holds an archive of another model, other inputs or settings, even one that is only begun, was
        not written by this method, cannot be written to or is not seen by the workers; or if another process is
        writing to the folder.
    XSuperResError
        If zarr is not installed, or whatever `downscale` raises.

    Examples
    --------
    >>> import tempfile
    >>> import xsuperres as xsr
    >>> field = xsr.testing.toy_field(time=6, y=16, x=24)
    >>> model = field.sr.fit(scale=2, optimization={"max_steps": 3}, progress=False, activate=False)
    >>> coarse, path = field.sr.coarsen(2), f"{tempfile.mkdtemp()}/fine.zarr"
    >>> fine = coarse.sr.downscale_to_zarr(path, model, progress=False)
    >>> fine.shape, fine.chunks is not None
    ((6, 16, 24), True)
    """
    from xsuperres.inference.devices import Execution
    from xsuperres.inference.plan import Options
    from xsuperres.inference.store import write

    options = Options(
        members=members,
        seed=seed,
        batch_size=batch_size,
        execution=Execution(device=device, precision=precision, compile=compile),
        mask=mask,
        check_range=check_range,
    )
    plan = self._plan(model, scale, static=static, predictors=predictors, options=options)
    written = write(
        plan,
        store,
        extra=self._extra(plan.sources),
        attrs=self._obj.attrs if isinstance(self._obj, xr.Dataset) else {},
        resume=resume,
        encoding=encoding,
        storage_options=storage_options,
        memory_budget=memory_budget,
        progress=progress,
    )
    return self._rebuilt(written, plan.sources)


def describe(
    self: Accessor[T], scale: int | None = None, *, model: SRModel | str | os.PathLike[str] | None = None
) -> str:
    """Say what downscaling these data would mean, without doing it.

    Parameters
    ----------
    scale : int, optional
        Fine cells per coarse cell; the model active for it is described if there is one.
    model : SRModel or path, optional
        Described instead.

    Returns
    -------
    str
        Axes, cells, periodicity, static fields, halo, estimates of memory and time.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> print(xsr.testing.toy_field(time=2, y=8, x=8).sr.describe(scale=2).splitlines()[0])
    field      tas [K], float32
    """
    from xsuperres.errors import NoModelError
    from xsuperres.inference.describe import describe
    from xsuperres.model.table import choose_model

    fields = self._fields()
    try:
        chosen = None if scale is None and model is None else choose_model(model, scale, [f.name for f in fields])
    except NoModelError:
        chosen = None
    return describe(fields, scale, chosen)
