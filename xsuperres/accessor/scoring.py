"""How good a field is: the accessor's method `score`; heavy modules are imported when it is called."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

import xarray as xr

if TYPE_CHECKING:
    from xsuperres.accessor.registered import Accessor, T
    from xsuperres.model.artefact import SRModel

__all__ = ["score"]


def score(
    self: Accessor[T],
    truth: T,
    *,
    coarse: T | None = None,
    model: SRModel | str | os.PathLike[str] | None = None,
    baselines: str | Iterable[str] | None = None,
    metrics: str | Iterable[str] | None = None,
    dim: Hashable | Iterable[Hashable] | None = None,
) -> xr.Dataset:
    """Score these fine data against the truth, beside the baselines, metric by metric and region by region.

    All metrics are area-weighted and taken over the same cells for every product: those where the truth, this
    field and all baselines are valid. Fields are compared by position, after their coordinates were compared to
    1e-3 of the spacing.

    Parameters
    ----------
    truth : DataArray or Dataset
        On the cells and times of this field, in any orientation, order of dims or longitude convention.
    coarse : DataArray or Dataset, optional
        What this field was made from. On a larger area or on other cells than the blocks of this field it is cut or
        regridded, as `downscale` did; the note says so. By default the area-weighted coarsening of the truth
        (perfect prognosis only); the note tells where the field itself was made from regridded data.
    model : SRModel or path, optional
        By default the model whose digest this field bears (attribute ``xsuperres_model``), if loaded in this
        process.
    baselines : str or list of str, optional
        Of bilinear, bicubic, lapse (temperature, where elevation is known), static_regression (the model's),
        delta and regression (a fixed-domain model, on its own grid). By default all that are defined; ``[]`` for
        none.
    metrics : str or list of str, optional
        Of rmse, mae, bias, correlation, sd_ratio, gradient_ratio, consistency (RMSE of the re-coarsened field
        against the coarse input). By default all.
    dim : str or list of str, optional
        Dims to reduce over; the others stay in the result. By default all.

    Returns
    -------
    Dataset
        One variable per metric; dims ``variable`` (of a Dataset), ``product`` ("network" if this field
        bears a model's digest, else "prediction", then the baselines), ``region`` ("all"; "land", "sea" and
        classes of elevation where those are known) and what is left. The attribute ``note`` says which
        baselines are absent and why. Dask-backed fields are computed, once.

    Warns
    -----
    XSuperResWarning
        If the truth overlaps the model's training period and domain, or units are missing.

    Raises
    ------
    XSuperResError
        If grids, times or units differ, the scale is not known, a name is unknown, a baseline that was asked for
        is not defined here, or a model of explicit pairs is scored without `coarse`.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> truth = xsr.testing.toy_field(time=2, y=8, x=12)
    >>> coarse = truth.sr.coarsen(2)
    >>> table = coarse.sr.interpolate(2, like=truth).sr.score(truth, coarse=coarse)
    >>> rmse = table.rmse.sel(region="all")
    >>> bool(rmse.sel(product="lapse") < rmse.sel(product="bicubic"))
    True
    """
    from xsuperres.fields.field import Field
    from xsuperres.model.file import load_model
    from xsuperres.verify.score import score

    chosen = load_model(model) if isinstance(model, (str, os.PathLike)) else model
    fields = self._fields(checked=True)
    names = [field.name for field in fields]
    truths, sources = self._like(names, truth, "truth"), self._like(names, coarse, "coarse")
    tables = [
        score(
            field,
            Field.of(true),
            coarse=None if source is None else Field.of(source),
            model=chosen,
            baselines=baselines,
            metrics=metrics,
            dim=dim,
        )
        for field, true, source in zip(fields, truths, sources, strict=True)
    ]
    return self._joined(tables, names)
