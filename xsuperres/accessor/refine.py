"""Training and applying networks: the accessor's methods `fit`, `downscale`, `describe`.

One call per method; heavy modules are imported when a method needs them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from xsuperres.accessor.base import Accessor, T

if TYPE_CHECKING:
    from xsuperres.config import AdversarialConfig, DataConfig, NetworkConfig, OptimizationConfig, SamplingConfig
    from xsuperres.model.artefact import SRModel

__all__ = ["Refining"]

StaticLike = xr.Dataset | xr.DataArray | Sequence[str] | None
PredictorsLike = xr.Dataset | xr.DataArray | Sequence[xr.Dataset | xr.DataArray] | None


class Refining(Accessor[T]):
    """`fit`, `downscale` and `describe`."""

    def fit(
        self,
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

        fields = self._fields()
        others = None if target is None else self._like([da.name for da in fields], target, "target")
        sources = Sources.of(fields, others, predictors)
        parts = {"training": training, "time_window": time_window, "backbone": backbone, "upsampling": upsampling}
        ways: dict[str, Any] = {"network": network, "data": data, "sampling": sampling, "optimization": optimization}
        ways |= {"adversarial": adversarial, "validation": validation}
        start = load_model(init) if isinstance(init, (str, os.PathLike)) else init
        settings = FitSettings.of({"scale": sources.scale(scale), "seed": seed, **parts, **ways})
        return fit(sources, settings, static=static, init=start, activate=activate, progress=progress, clock=clock)

    def downscale(
        self,
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
        from xsuperres.inference.chunked import downscale
        from xsuperres.inference.devices import Execution

        chosen = self._model(model, scale)
        options: dict[str, Any] = {"static": static, "predictors": predictors, "members": members, "seed": seed}
        execution = Execution(device=device, precision=precision, compile=compile)
        options |= {"batch_size": batch_size, "execution": execution, "mask": mask, "check_range": check_range}
        return self._returned(downscale(self._fields(chosen.input_names), chosen, **options))

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
            return active_model(tuple(da.name for da in self._fields()), wanted)
        chosen = load_model(model) if isinstance(model, (str, os.PathLike)) else model
        if not isinstance(chosen, SRModel):
            number = isinstance(chosen, Integral) and not isinstance(chosen, bool)
            meant = f" ({chosen!r}); did you mean scale={chosen}?" if number else "."
            raise ConfigError(f"model must be an SRModel or the path of one, got {type(chosen).__name__}{meant}")
        if wanted not in (None, chosen.scale):
            raise ConfigError(f"scale={scale} differs from the model's scale of {chosen.scale}; leave scale out.")
        return chosen

    def describe(self, scale: int | None = None, *, model: SRModel | str | os.PathLike[str] | None = None) -> str:
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

        try:
            chosen = None if scale is None and model is None else self._model(model, scale)
        except NoModelError:
            chosen = None
        return describe(self._fields(), scale, chosen)
