"""`SRModel`: everything a trained network needs to be applied anywhere, and what a reader wants to know of it.

The artefact only: it is built by `fit`, kept in a file, shown, and looked up; it has no predict.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.config import DataConfig
from xsuperres.errors import ModelFileError, unknown_name
from xsuperres.fields.baselines import LinearBaselines, Scaling
from xsuperres.fields.channels import Channels
from xsuperres.fields.grid import Grid
from xsuperres.fields.ranges import InputRange
from xsuperres.fields.static import StaticScaling, anomalies, static_channels
from xsuperres.fields.times import offsets
from xsuperres.fields.transform import Transform
from xsuperres.model.features import channels_of, residual_sd
from xsuperres.nn.discriminator import Discriminator
from xsuperres.nn.network import NetworkSpec, SuperResolution

__all__ = ["Predictor", "SRModel", "Target", "TrainingRecord", "Variable"]


@dataclass(frozen=True, kw_only=True)
class Variable:
    """What a variable was called when the model was trained: name, units, CF standard name.

    `had_missing` says whether its coarse fields given to ``fit``, held-out ones included, had missing cells.
    """

    name: str | None
    units: str | None
    standard_name: str | None
    long_name: str | None = None
    had_missing: bool = False


@dataclass(frozen=True, kw_only=True)
class Input:
    """A variable that the network is shown on the coarse grid."""

    variable: Variable
    scaling: Scaling

    @property
    def coarse(self) -> Variable:
        """Labels of the coarse fields it is shown as."""
        return self.variable


@dataclass(frozen=True, kw_only=True)
class Target(Input):
    """A variable that the model refines: labels, transform, scaling and baselines in transformed units.

    `climatology` holds its training means on the coarse and the fine grid, which transform="anomaly" is taken about
    (where the target never is, the coarse one interpolated); `bounds` the lowest and the highest value of the result,
    in units of the variable (None: there is none); `source` the coarse variable of explicit pairs that it is made from
    (None: its own coarsening).
    """

    baselines: LinearBaselines
    transform: Transform = field(default_factory=Transform)
    climatology: tuple[np.ndarray, np.ndarray] | None = None
    bounds: tuple[float | None, float | None] = (None, None)
    source: Variable | None = None

    @property
    def coarse(self) -> Variable:
        """Labels of the coarse fields it is made from."""
        return self.source or self.variable


@dataclass(frozen=True, kw_only=True)
class Predictor(Input):
    """A variable that the network is only shown."""

    contrast_sd: float


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How and on what the model was trained.

    `kind` is the name of the kind of training; `period` is first and last training time as text, `held_out` the
    stretches of time, first and last, that were validated on instead; `validation` is the validation score; `history`
    maps names to equally long lists, one entry a validation; `step` is the usual step in time, or along leads, in
    hours.
    """

    period: tuple[str, str] | None
    samples: int
    seed: int
    steps: int
    cpu_seconds: float
    validation_kind: str
    held_out: tuple[tuple[str, str], ...] = ()
    kind: str = "supervised"
    step: float | None = None
    validation: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class SRModel:
    """A trained super-resolution model.

    Made by ``da.sr.fit`` or `load_model`; applied by ``da.sr.downscale(model)``.

    Attributes
    ----------
    spec : NetworkSpec
        Backbone, upsampling, scale and sizes.
    network : SuperResolution
        The torch module, in eval mode on the CPU.
    grid : Grid
        The fine grid of the training domain.
    static : xr.Dataset
        Static fields on that grid, (y, x).
    targets : tuple of Target
        The variables it refines; `variable`, `scaling` and `baselines` are those of the first.
    predictors : tuple of Predictor
        Other variables it is shown.
    ranges : tuple of InputRange
        Of the coarse values of each of `inputs`, held-out ones included.
    fine_mask : ndarray of bool (targets, y, x) or None
        Fine cells that were trained on at least once (target and coarse cell valid), where some never were.
    margin : tuple of int
        Coarse cells of the grid (south, north, west, east) that are context of a regional training: no result there.
    paired : bool
        Whether it was trained on explicit pairs of coarse and fine data.
    discriminator : torch module or None
        What an adversarial network was trained against, right after training.
    """

    spec: NetworkSpec
    network: SuperResolution
    targets: tuple[Target, ...]
    static_scaling: StaticScaling
    data: DataConfig
    grid: Grid
    static: xr.Dataset
    training: TrainingRecord
    predictors: tuple[Predictor, ...] = ()
    ranges: tuple[InputRange, ...]
    discriminator: Discriminator | None = None
    fine_mask: np.ndarray | None = None
    margin: tuple[int, int, int, int] = (0, 0, 0, 0)
    paired: bool = False
    origin: str | None = None  # digest of the model this one is a copy of, brought to another domain

    @property
    def scale(self) -> int:
        """Fine cells per coarse cell along each horizontal axis."""
        return self.spec.scale

    @property
    def variable(self) -> Variable:
        """Labels of the first variable."""
        return self.targets[0].variable

    @property
    def scaling(self) -> Scaling:
        """Scaling of the first variable, in transformed units."""
        return self.targets[0].scaling

    @property
    def baselines(self) -> LinearBaselines:
        """Baselines of the first variable, in transformed units."""
        return self.targets[0].baselines

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The variables that the network is shown: targets, then predictors."""
        return (*self.targets, *self.predictors)

    def target(self, name: object) -> Target:
        """Return the target of that name; that of a single variable whatever its name."""
        found = [target for target in self.targets if target.variable.name == name]
        if not found and len(self.targets) > 1:
            raise unknown_name("variable of the model", name, [str(known) for known in self.names])
        return found[0] if found else self.targets[0]

    @property
    def names(self) -> tuple[str | None, ...]:
        """Names of the variables it refines."""
        return tuple(target.variable.name for target in self.targets)

    @property
    def input_names(self) -> tuple[str | None, ...]:
        """Names of the coarse variables that these are made from; what the active model is looked up by."""
        return tuple(target.coarse.name for target in self.targets)

    @property
    def fixed_domain(self) -> bool:
        """Whether the model is bound to its training domain."""
        return self.data.domain == "fixed"

    @cached_property
    def coarse_grid(self) -> Grid:
        """The coarse grid of the training domain."""
        return self.grid.coarsen(self.scale)

    @cached_property
    def static_anomaly(self) -> np.ndarray:
        """Static fields minus the interpolation of their coarsening, (static, y, x)."""
        return anomalies(self.static, self.grid, self.scale)

    @cached_property
    def reach(self) -> int:
        """Neighbouring coarse cells on each side that an output cell depends on, whole-domain statistics aside."""
        return self.channels.reach(self.network.reach)

    @property
    def halo(self) -> int | None:
        """Neighbouring coarse cells that make tiles exact; None if the domain must be seen whole."""
        return None if self.network.global_context else self.reach

    @property
    def time_halo(self) -> tuple[int, int]:
        """Frames before and after an output step that it depends on."""
        window = self.spec.time_window
        return (0, 0) if window is None else offsets(window, self.data.time_alignment)

    @cached_property
    def linear_correction(self) -> np.ndarray:
        """What the best linear baseline adds to bicubic on the fine grid, (targets, y, x), in transformed units."""
        if self.fixed_domain:
            return np.stack([np.nan_to_num(target.baselines.delta) for target in self.targets])
        coefficients = np.stack([target.baselines.coefficients for target in self.targets])
        return np.asarray(np.einsum("ts,syx->tyx", coefficients, self.static_anomaly))

    @property
    def correction(self) -> np.ndarray | None:
        """What the skip adds to bicubic, if it adds anything."""
        return self.linear_correction if self.spec.config.skip == "linear" else None

    @property
    def residual_sd(self) -> tuple[float, ...]:
        """Training error of the skip for each target, in transformed units: the unit of the network's output."""
        return residual_sd(self.targets, self.data, self.spec.config)

    @cached_property
    def channels(self) -> Channels:
        """How fields on the model's domain become channels, and the network's output becomes fields."""
        return channels_of(
            self.targets,
            self.predictors,
            data=self.data,
            network=self.spec.config,
            static=static_channels(self.static, self.static_anomaly, self.static_scaling),
            correction=self.correction,
        )

    @cached_property
    def digest(self) -> str:
        """sha256 of the model, but for the seconds that its training took; what lookups go by."""
        from xsuperres.model.file import digest_of

        return digest_of(self)

    @property
    def identity(self) -> str:
        """Digest of the model as it was trained, also on a copy brought to another domain."""
        return self.origin or self.digest

    @property
    def history(self) -> xr.Dataset:
        """Training history: loss, learning rate and validation score at every validation, dim `step`."""
        columns = dict(self.training.history)
        steps = columns.pop("step", [])
        return xr.Dataset(
            {name: ("step", np.asarray(values)) for name, values in columns.items()}, coords={"step": steps}
        )

    def on(self, grid: Grid, static: xr.Dataset) -> SRModel:
        """Return a copy of an open model with another fine grid and the static fields there."""
        return replace(
            self,
            grid=grid,
            static=static[list(self.static_scaling.names)],
            fine_mask=None,
            margin=(0, 0, 0, 0),
            ranges=tuple(part.on(self.coarse_grid, grid.coarsen(self.scale)) for part in self.ranges),
            origin=self.identity,
        )

    def save(self, path: Any, *, discriminator: bool = False) -> None:
        """Write the model to one ``.safetensors`` file; see `xsuperres.load_model`.

        Parameters
        ----------
        path : path-like
            The file appears whole or not at all.
        discriminator : bool
            Write the discriminator of an adversarial model too, to train on with ``init=``.

        Raises
        ------
        ModelFileError
            If it cannot be written.
        """
        from xsuperres.model.file import save_model

        if discriminator and self.discriminator is None:
            raise ModelFileError("There is no discriminator to save: it is there right after adversarial training.")
        save_model(self if discriminator else replace(self, discriminator=None), path)

    def __repr__(self) -> str:
        from xsuperres.model.show import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from xsuperres.model.show import as_html

        return as_html(self)
