"""The ``.sr`` accessor of DataArrays: one call per method, explicit signatures.

It stores the DataArray and nothing else: xarray drops an accessor with its object. Heavy modules are imported when a
method needs them.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

if TYPE_CHECKING:
    from xsuperres.config import AdversarialConfig, DataConfig, NetworkConfig, OptimizationConfig, SamplingConfig
    from xsuperres.model.artefact import SRModel

__all__ = ["SuperResolutionAccessor"]

StaticLike = xr.Dataset | xr.DataArray | Sequence[str] | None


@xr.register_dataarray_accessor("sr")
class SuperResolutionAccessor:
    """Deep-learning super-resolution of a DataArray: train, downscale, interpolate, coarsen, score."""

    def __init__(self, da: xr.DataArray) -> None:
        self._da = da

    def fit(
        self,
        scale: int,
        *,
        static: StaticLike = None,
        training: Literal["supervised", "adversarial"] = "supervised",
        time_window: int | None = None,
        backbone: str = "residual",
        upsampling: str = "interpolation",
        network: NetworkConfig | Mapping[str, Any] | None = None,
        data: DataConfig | Mapping[str, Any] | None = None,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        optimization: OptimizationConfig | Mapping[str, Any] | None = None,
        adversarial: AdversarialConfig | Mapping[str, Any] | None = None,
        init: SRModel | str | os.PathLike[str] | None = None,
        validation: float | slice | str | xr.DataArray | None = 0.2,
        seed: int = 0,
        activate: bool = True,
        progress: bool = True,
    ) -> SRModel:
        """Train a super-resolution network on this fine field, which is coarsened inside (perfect prognosis).

        Dask-backed data are read block by block, in memory up to ``sampling.memory_budget``.

        Parameters
        ----------
        scale : int
            Fine cells per coarse cell along each horizontal axis, at least 2; must divide the grid.
        static : Dataset, DataArray or list of str, optional
            Static fields on this grid. By default the 2-D coordinates with a CF standard name of one
            (surface_altitude, land_area_fraction, ...).
        training : {"supervised", "adversarial"}
            How the network is trained; adversarial: against a discriminator, for sharper fields.
        time_window : int, optional
            Coarse frames that each output step is made from, the last of them its own; see `DataConfig`.
        backbone : {"conv", "residual", "dense", "convnext", "unet"}
            Layers between the first convolution and the upsampling.
        upsampling : {"interpolation", "subpixel", "resize", "deconvolution"}
            How the fine grid is reached; resize_bilinear and resize_bicubic too.
        network, data, sampling, optimization, adversarial : dataclass or dict, optional
            Settings, see `NetworkConfig`, `DataConfig`, `SamplingConfig`, `OptimizationConfig`, `AdversarialConfig`.
        init : SRModel or path, optional
            Start from this model's weights and scaling (fine-tuning).
        validation : float, slice, DataArray, "space" or None
            What is held out for early stopping: a fraction in blocks of time, a period, other data, or a stretch of
            the domain, a halo apart. "space" makes a model for other domains.
        seed : int
            Same seed and step or epoch budget, same weights, bit for bit on CPU.
        activate : bool
            Make it the model that ``downscale(scale=...)`` uses for this variable.
        progress : bool
            Show a progress bar.

        Returns
        -------
        SRModel
            The trained model; save it with ``model.save(path)``.

        Raises
        ------
        XSuperResError
            With what was expected, what came and what to do; see `xsuperres.errors`.

        Examples
        --------
        >>> import xsuperres as xsr
        >>> fine = xsr.testing.toy_field(time=6, y=16, x=24)
        >>> model = fine.sr.fit(scale=2, optimization={"max_steps": 3}, progress=False)
        >>> model.scale, model.training.steps
        (2, 3)
        """
        from xsuperres.training.budget import Clock

        clock = Clock()  # before the heavy imports: budgets in seconds mean the whole call
        from xsuperres.fitting import fit
        from xsuperres.material import Sources
        from xsuperres.model.file import load_model
        from xsuperres.settings import FitSettings

        parts = {"training": training, "time_window": time_window, "backbone": backbone, "upsampling": upsampling}
        ways: dict[str, Any] = {"network": network, "data": data, "sampling": sampling, "optimization": optimization}
        ways |= {"adversarial": adversarial, "validation": validation}
        start = load_model(init) if isinstance(init, (str, os.PathLike)) else init
        settings = FitSettings.of({"scale": scale, "seed": seed, **parts, **ways})
        sources = Sources((self._da,))
        return fit(sources, settings, static=static, init=start, activate=activate, progress=progress, clock=clock)

    def downscale(
        self,
        model: SRModel | str | os.PathLike[str] | None = None,
        *,
        scale: int | None = None,
        static: xr.Dataset | xr.DataArray | None = None,
        members: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        device: str = "auto",
        mask: Literal["input", "model"] | None = "model",
    ) -> xr.DataArray:
        """Apply a model to this coarse field.

        Parameters
        ----------
        model : SRModel or path, optional
            By default the active model for this variable and `scale`.
        scale : int, optional
            Required without `model`; must be the model's.
        static : Dataset or DataArray, optional
            The model's static fields on the fine grid of this domain; not needed on the training domain.
        members : int, optional
            Results that differ by the network's randomness (noise, Monte Carlo dropout), along a new dim `member`.
        seed : int
            Of the members; the same seed gives the same members, however the data are chunked.
        batch_size : int, optional
            Fields that go through the network at once.
        device : str
            "auto", "cpu", "cuda", "cuda:1".
        mask : {"input", "model", None}
            Result is NaN where the coarse cell is; "model" also where the training target always was; None: nowhere.

        Returns
        -------
        DataArray
            Same dims, horizontal sizes times `scale`, units and attributes unchanged; lazy if dask-backed. Chunked
            in any way it equals the whole within 1e-5 training standard deviations.

        Raises
        ------
        XSuperResError
            If there is no such model, or grid, units or static fields do not fit.
        """
        from xsuperres.inference.chunked import downscale

        chosen = self._model(model, scale)
        options: dict[str, Any] = {"members": members, "seed": seed, "batch_size": batch_size}
        options |= {"device": device, "mask": mask}
        return downscale([self._da], chosen, static=static, **options)[0]

    def _model(self, model: SRModel | str | os.PathLike[str] | None, scale: int | None) -> SRModel:
        from xsuperres.errors import ConfigError
        from xsuperres.fields.grid import check_scale
        from xsuperres.model.artefact import SRModel
        from xsuperres.model.file import load_model
        from xsuperres.model.table import active_model

        wanted = None if scale is None else check_scale(scale)
        if model is None:
            if wanted is None:
                raise ConfigError("Pass a model, or the scale of the active one: .sr.downscale(scale=4).")
            return active_model(self._da.name, wanted)
        chosen = load_model(model) if isinstance(model, (str, os.PathLike)) else model
        if not isinstance(chosen, SRModel):
            raise ConfigError(f"model must be an SRModel or the path of one, got {type(chosen).__name__}.")
        if wanted not in (None, chosen.scale):
            raise ConfigError(f"scale={scale} differs from the model's scale of {chosen.scale}; leave scale out.")
        return chosen

    def interpolate(
        self,
        scale: int,
        *,
        method: str = "bicubic",
        like: xr.DataArray | xr.Dataset | None = None,
    ) -> xr.DataArray:
        """Refine this field by interpolation, the same weights in every cell, NaN-aware.

        Parameters
        ----------
        scale : int
            Fine cells per coarse cell along each horizontal axis.
        method : {"nearest", "bilinear", "bicubic"}
            Bicubic is cubic convolution (Keys 1981).
        like : DataArray or Dataset, optional
            On the fine grid: its coordinates are taken, bit for bit.

        Returns
        -------
        DataArray
            Same dims, horizontal sizes times `scale`, units unchanged; lazy if dask-backed.

        Examples
        --------
        >>> import xsuperres as xsr
        >>> fine = xsr.testing.toy_field(time=1, y=8, x=8)
        >>> fine.sr.coarsen(4).sr.interpolate(4).sizes == fine.sizes
        True
        """
        from xsuperres.fields.resample import interpolate

        return interpolate(self._da, scale, method=method, like=like)

    def coarsen(self, scale: int, *, minimum_valid_fraction: float = 0.5) -> xr.DataArray:
        """Coarsen this field by area-weighted means of scale x scale cells, NaN-aware.

        Parameters
        ----------
        scale : int
            Fine cells per coarse cell along each horizontal axis; must divide the grid.
        minimum_valid_fraction : float
            A coarse cell is NaN when less than this fraction of its area is valid.

        Returns
        -------
        DataArray
            Same dims, horizontal sizes divided by `scale`, units unchanged; lazy if dask-backed. 2-D coordinates are
            coarsened under their names.

        Examples
        --------
        >>> import xsuperres as xsr
        >>> xsr.testing.toy_field(time=1, y=8, x=12).sr.coarsen(4).shape
        (1, 2, 3)
        """
        from xsuperres.fields.resample import coarsen

        return coarsen(self._da, scale, minimum_valid_fraction=minimum_valid_fraction)

    def score(
        self,
        truth: xr.DataArray,
        *,
        coarse: xr.DataArray | None = None,
        model: SRModel | str | os.PathLike[str] | None = None,
        baselines: str | Iterable[str] | None = None,
        metrics: str | Iterable[str] | None = None,
        dim: Hashable | Iterable[Hashable] | None = None,
    ) -> xr.Dataset:
        """Score this fine field against the truth, beside the baselines, metric by metric and region by region.

        All metrics are area-weighted and taken over the same cells for every product: those where the truth, this
        field and all baselines are valid. Fields are compared by position, after their coordinates were compared to
        1e-3 of the spacing.

        Parameters
        ----------
        truth : DataArray
            On the cells and times of this field, in any orientation, order of dims or longitude convention.
        coarse : DataArray, optional
            What this field was made from. By default the area-weighted coarsening of the truth (perfect prognosis
            only).
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
            One variable per metric; dims ``product`` ("network" if this field bears a model's digest, else
            "prediction", then the baselines), ``region`` ("all"; "land", "sea" and classes of elevation where those
            are known) and what is left. The attribute ``note`` says which baselines are absent and why. Dask-backed
            fields are computed, once.

        Warns
        -----
        XSuperResWarning
            If the truth overlaps the model's training period and domain, or units are missing.

        Raises
        ------
        XSuperResError
            If grids, times or units differ, the scale is not known, a name is unknown, or a baseline that was asked
            for is not defined here.

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
        from xsuperres.model.file import load_model
        from xsuperres.verify.score import score

        chosen = load_model(model) if isinstance(model, (str, os.PathLike)) else model
        return score(self._da, truth, coarse=coarse, model=chosen, baselines=baselines, metrics=metrics, dim=dim)

    def describe(self, scale: int | None = None, *, model: SRModel | str | os.PathLike[str] | None = None) -> str:
        """Say what downscaling this field would mean, without doing it.

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

        try:
            chosen = None if scale is None and model is None else self._model(model, scale)
        except NoModelError:
            chosen = None
        return describe(self._da, scale, chosen)

    def with_bounds(self) -> xr.Dataset:
        """Return this field as a Dataset with the bounds of its horizontal cells, ready for CF netCDF.

        Returns
        -------
        Dataset
            This field and ``<dim>_bnds`` (dim, bnds), latitudes ending at the poles; lazy if dask-backed.

        Examples
        --------
        >>> import xsuperres as xsr
        >>> sorted(xsr.testing.toy_field(time=1, y=8, x=8).sr.with_bounds().data_vars)
        ['lat_bnds', 'lon_bnds', 'tas']
        """
        from xsuperres.fields.labels import with_bounds

        return with_bounds(self._da)
