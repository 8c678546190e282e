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
from xsuperres.fields.baselines import LinearBaselines, Scaling
from xsuperres.fields.channels import Channels
from xsuperres.fields.grid import Grid
from xsuperres.fields.static import StaticScaling, anomalies, static_channels
from xsuperres.nn.network import NetworkSpec, SuperResolution
from xsuperres.nn.resample import radius

__all__ = ["SRModel", "TrainingRecord", "Variable", "halo_with"]


def halo_with(network: SuperResolution, data: DataConfig) -> int:
    """Return the halo of a network with its input channels and its skip, in coarse cells."""
    skip = radius("bicubic") if network.spec.config.skip else 0
    return max(network.halo + data.reach, skip)


@dataclass(frozen=True, kw_only=True)
class Variable:
    """What the model was trained on: name, units, CF standard name.

    `had_missing` says whether the coarse fields given to ``fit``, held-out ones included, had missing cells.
    """

    name: str | None
    units: str | None
    standard_name: str | None
    long_name: str | None = None
    had_missing: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How and on what the model was trained.

    `period` is first and last training time as text; `validation` is the validation score; `history` maps names
    to equally long lists, one entry a validation.
    """

    period: tuple[str, str] | None
    samples: int
    seed: int
    steps: int
    cpu_seconds: float
    validation_kind: str
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
    fine_mask : ndarray of bool (y, x) or None
        Fine cells that were trained on at least once (target and coarse cell valid), where some never were.
    """

    spec: NetworkSpec
    network: SuperResolution
    variable: Variable
    scaling: Scaling
    baselines: LinearBaselines
    static_scaling: StaticScaling
    data: DataConfig
    grid: Grid
    static: xr.Dataset
    training: TrainingRecord
    fine_mask: np.ndarray | None = None
    origin: str | None = None  # digest of the model this one is a copy of, brought to another domain

    @property
    def scale(self) -> int:
        """Fine cells per coarse cell along each horizontal axis."""
        return self.spec.scale

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
    def halo(self) -> int:
        """Neighbouring coarse cells on each side that an output cell depends on."""
        return halo_with(self.network, self.data)

    @cached_property
    def linear_correction(self) -> np.ndarray:
        """What the best linear baseline adds to bicubic on the fine grid, (y, x), in units of the variable."""
        if self.fixed_domain:
            return np.nan_to_num(self.baselines.delta)
        return np.asarray(np.einsum("s,syx->yx", self.baselines.coefficients, self.static_anomaly))

    @property
    def correction(self) -> np.ndarray | None:
        """What the skip adds to bicubic, if it adds anything."""
        return self.linear_correction if self.spec.config.skip == "linear" else None

    @property
    def residual_sd(self) -> float:
        """Training error of the skip, in units of the variable: the unit of the network's output."""
        kind = {"linear": "linear_fixed" if self.fixed_domain else "linear_open", "bicubic": "bicubic"}
        return self.baselines.residual_sd[kind.get(self.spec.config.skip or "", "none")]

    @cached_property
    def channels(self) -> Channels:
        """How fields on the model's domain become channels."""
        planes, climatology = [static_channels(self.static, self.static_anomaly, self.static_scaling)], None
        if self.fixed_domain:
            climatology = np.nan_to_num(self.baselines.climatology, nan=self.scaling.mean)
            planes.append(np.nan_to_num(self.baselines.delta)[None] / self.baselines.residual_sd["linear_fixed"])
        return Channels(
            mean=self.scaling.mean,
            sd=self.scaling.sd,
            climatology=climatology,
            anomaly_sd=self.baselines.residual_sd["climatology"],
            contrast_sd=self.baselines.residual_sd["contrast"],
            contrast_radius=self.data.contrast_radius,
            with_mask=self.variable.had_missing,
            fine=np.concatenate(planes).astype(np.float32),
            correction=self.correction,
            has_skip=self.spec.config.skip is not None,
            gain=self.residual_sd / self.scaling.sd,
        )

    @cached_property
    def digest(self) -> str:
        """sha256 of everything in the model; what files and lookups are checked by."""
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
            origin=self.identity,
        )

    def save(self, path: Any) -> None:
        """Write the model to one ``.safetensors`` file; see `xsuperres.load_model`.

        Parameters
        ----------
        path : path-like
            The file appears whole or not at all.

        Raises
        ------
        ModelFileError
            If it cannot be written.
        """
        from xsuperres.model.file import save_model

        save_model(self, path)

    def __repr__(self) -> str:
        from xsuperres.model.show import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from xsuperres.model.show import as_html

        return as_html(self)
