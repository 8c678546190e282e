"""Training: the accessor's method `fit`; heavy modules are imported when it is called."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

if TYPE_CHECKING:
    from xsuperres.accessor.registered import Accessor, T
    from xsuperres.config import AdversarialConfig, DataConfig, NetworkConfig, OptimizationConfig, SamplingConfig
    from xsuperres.model.artefact import SRModel

__all__ = ["PredictorsLike", "fit"]

StaticLike = xr.Dataset | xr.DataArray | Sequence[str] | None
PredictorsLike = xr.Dataset | xr.DataArray | Sequence[xr.Dataset | xr.DataArray] | None


def fit(
    self: Accessor[T],
    scale: int | None = None,
    *,
    target: T | None = None,
    static: StaticLike = None,
    predictors: PredictorsLike = None,
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
    validation: float | slice | str | xr.DataArray | xr.Dataset | None = 0.2,
    seed: int = 0,
    activate: bool = True,
    progress: bool = True,
) -> SRModel:
    """Train a super-resolution network.

    Without `target` on these fine data, which are coarsened inside (perfect prognosis); with it on these coarse
    data and the fine ones they belong to (model output statistics). Of a Dataset all variables are refined by one
    network. Dask-backed data are read block by block, in memory up to ``sampling.memory_budget``.

    Parameters
    ----------
    scale : int, optional
        Fine cells per coarse cell along each horizontal axis, at least 2; must divide the grid. With `target` it is
        found out.
    target : DataArray or Dataset, optional
        Fine data of the same (valid) times. Times, members and the variables of Datasets belong together by label;
        a DataArray may have another name, which the results of `downscale` then bear. Where coarse cells are not
        blocks of its cells, the coarse data are brought onto blocks conservatively, in `downscale` too; coarse data
        beyond its domain are context.
    static : Dataset, DataArray or list of str, optional
        Static fields on this grid. By default the 2-D coordinates with a CF standard name of one
        (surface_altitude, land_area_fraction, ...).
    predictors : Dataset, DataArray or list of these, optional
        Other variables that the network is shown, on the coarse, the fine or a third grid, at the same times.
    training : {"supervised", "adversarial"}
        How the network is trained; adversarial: against a discriminator, for sharper fields.
    time_window : int, optional
        Coarse frames that each output step is made from, the last of them its own; see `DataConfig`.
    backbone : {"conv", "residual", "dense", "convnext", "unet"}
        Layers between the first convolution and the upsampling.
    upsampling : {"interpolation", "subpixel", "resize", "resize_bilinear", "resize_bicubic", "deconvolution"}
        How the fine grid is reached.
    network, data, sampling, optimization, adversarial : dataclass or dict, optional
        Settings, see `NetworkConfig`, `DataConfig`, `SamplingConfig`, `OptimizationConfig`, `AdversarialConfig`.
    init : SRModel or path, optional
        Start from this model's weights and scaling (fine-tuning).
    validation : float, slice, DataArray or Dataset, "space" or None
        What is held out for early stopping: a fraction in blocks of time, a period, other fine data (a Dataset of
        all variables and predictors; without `target` only), or a stretch of the domain, a halo apart. "space"
        makes a model for other domains.
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

    fields = self._fields(gaps=target is None)
    targets = None if target is None else self._like([field.name for field in fields], target, "target")
    sources = Sources.of(fields, targets, predictors)
    parts = {"training": training, "time_window": time_window, "backbone": backbone, "upsampling": upsampling}
    ways: dict[str, Any] = {"network": network, "data": data, "sampling": sampling, "optimization": optimization}
    ways |= {"adversarial": adversarial, "validation": validation}
    start = load_model(init) if isinstance(init, (str, os.PathLike)) else init
    settings = FitSettings.of({"scale": sources.scale(scale), "seed": seed, **parts, **ways})
    return fit(sources, settings, static=static, init=start, activate=activate, progress=progress, clock=clock)
