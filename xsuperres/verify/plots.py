"""Pictures: how training went, and maps of one time step.

Labelled arrays and models in, matplotlib figures out. Matplotlib is imported when a picture is drawn; figures are
closed for pyplot, so that a notebook shows each once, as the value of its cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xsuperres.errors import DataError, XSuperResError
from xsuperres.fields.grid import Grid, grid_of
from xsuperres.verify.alignment import bare, on_grid
from xsuperres.verify.metrics import weighted_mean
from xsuperres.verify.regions import land_of, surface_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from xsuperres.model.artefact import SRModel

__all__ = ["history", "maps"]

_FIELD_COLOURS, _ERROR_COLOURS = "viridis", "RdBu_r"  # both readable by the colour-blind
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "0.45"  # Okabe and Ito (2008)


def _pyplot() -> Any:
    """Return pyplot, or say how to get it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise XSuperResError(
            "Pictures need matplotlib, which is not installed; install it with pip install 'xsuperres[viz]'."
        ) from error
    return plt


def history(model: SRModel, *, ax: Axes | None = None) -> Figure:
    """Draw how training went: the loss, and the validation score with the step that was kept.

    Parameters
    ----------
    model : SRModel
        Its `history` is drawn.
    ax : Axes, optional
        Draw the validation score (the loss, where nothing was held out) into these axes only.

    Returns
    -------
    Figure
        The left scale of the score is the RMSE over bicubic's, the right one over that of the linear baseline that
        the network starts from.

    Raises
    ------
    XSuperResError
        If matplotlib is not installed.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> fine = xsr.testing.toy_field(time=6, y=16, x=24)
    >>> model = fine.sr.fit(scale=2, optimization={"max_steps": 3}, progress=False)
    >>> len(history(model).axes)
    2
    """
    plt, record = _pyplot(), model.history
    scored = "ratio_to_bicubic" in record
    if ax is not None:
        (_draw_score if scored else _draw_loss)(ax, record)
        return ax.figure  # type: ignore[return-value]
    figure, panels = plt.subplots(
        1 + scored, 1, sharex=True, squeeze=False, layout="constrained", figsize=(7.0, 2.8 + 2.4 * scored)
    )
    _draw_loss(panels[0, 0], record)
    if scored:
        _draw_score(panels[1, 0], record)
    panels[-1, 0].set_xlabel("training step")
    what = model.variable.long_name or model.variable.name or "model"
    held = (
        f"validation on {model.training.validation_kind}"
        if scored
        else "nothing was held out; the last average is kept"
    )
    figure.suptitle(f"{what}, scale {model.scale}: {held}", fontsize="medium")
    plt.close(figure)
    return figure


def _draw_loss(ax: Axes, record: xr.Dataset) -> None:
    ax.plot(record.step, record.loss, color=_GREEN, marker=".", markersize=5)
    low, high = float(record.loss.min()), float(record.loss.max())
    if low > 0 and high / low > 3:
        ax.set_yscale("log")
    ax.set_ylabel("training loss")
    _tidy(ax)


def _draw_score(ax: Axes, record: xr.Dataset) -> None:
    ratio = record.ratio_to_bicubic
    best = int(record.rmse.argmin())
    linear = float(ratio[0] / record.ratio_to_linear[0])  # the linear baseline's RMSE over bicubic's
    ax.plot(record.step, ratio, color=_BLUE, marker=".", markersize=5, label="network")
    ax.axhline(linear, color=_ORANGE, linestyle="--", linewidth=1.2, label="linear baseline")
    low, high = min(float(ratio.min()), linear), max(float(ratio.max()), linear)
    pad = 0.12 * max(high - low, 0.01 * high)
    ax.set_ylim(low - pad, high + 2 * pad)
    if low - pad < 1.0 < high + 2 * pad:
        ax.axhline(1.0, color=_GREY, linestyle=":", linewidth=1.2, label="bicubic")
    step, value = float(record.step[best]), float(ratio[best])
    ax.plot(
        [step], [value], "o", markersize=9, markerfacecolor="none", markeredgecolor=_BLUE, markeredgewidth=1.6,
        label=f"kept: step {step:.0f}, {value:.3f} of bicubic, {value / linear:.3f} of linear",
    )  # fmt: skip
    ax.set_ylabel("validation RMSE / bicubic")
    right = ax.secondary_yaxis("right", functions=(lambda v: v / linear, lambda v: v * linear))
    right.set_ylabel("/ linear baseline")
    ax.legend(frameon=False, fontsize="small")
    _tidy(ax, right=True)


def _tidy(ax: Axes, *, right: bool = False) -> None:
    ax.grid(color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top"] if right else ["top", "right"]].set_visible(False)


@dataclass(frozen=True, eq=False)
class _Plane:
    """A map to draw: canonical values on a grid, and its title."""

    values: np.ndarray
    grid: Grid
    title: str


def maps(
    coarse: xr.DataArray,
    bicubic: xr.DataArray,
    network: xr.DataArray,
    truth: xr.DataArray,
    *,
    title: str | None = None,
) -> Figure:
    """Draw one time step: coarse, bicubic, network and truth on one colour scale, and the two error maps on another.

    Parameters
    ----------
    coarse, bicubic, network, truth : DataArray
        Two dims, in any order and orientation, or others of size 1. The coast is drawn from the land fraction that
        rides on one of the fine fields.
    title : str, optional
        By default the variable and its time.

    Returns
    -------
    Figure
        Of six maps. Colour scales leave out the outermost 0.5 % of the cells.

    Raises
    ------
    DataError
        If a field has more than one time step.
    GridError
        If the fine fields do not lie on the same cells.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> fine = xsr.testing.toy_field(time=1, y=8, x=12)
    >>> coarse = fine.sr.coarsen(2)
    >>> guess = coarse.sr.interpolate(2)
    >>> figure = maps(coarse, guess, guess, fine, title="toy")
    >>> [ax.get_title() for ax in figure.axes[:2]]
    ['coarse', 'bicubic, RMSE 3.33 K']
    """
    plt = _pyplot()
    truth = _single(truth, "truth")
    grid, units = grid_of(truth), truth.attrs.get("units", "")
    fields, errors = _planes(coarse, bicubic, network, truth, grid)
    land = land_of(surface_of([truth, _single(network, "network"), _single(bicubic, "bicubic")], grid)[0])
    colours = _norms(fields, errors)
    with plt.rc_context({"font.size": 9.0, "axes.titlesize": 10.0}):
        figure, slots = _canvas(plt, grid)
        for ax, plane in zip(slots.panels, [*fields, *errors], strict=True):
            error = any(plane is e for e in errors)
            mesh = _draw_map(ax, plane, _ERROR_COLOURS if error else _FIELD_COLOURS, colours[error])
            _draw_coast(ax, grid, land)
            slots.keep(mesh, error=error)
        name = truth.attrs.get("long_name") or truth.name or "field"
        slots.add_bars(figure, f"{name} [{units}]" if units else str(name), f"error [{units}]" if units else "error")
        slots.label(grid)
        figure.suptitle(_headline(truth) if title is None else title)
    plt.close(figure)
    return figure


def _single(da: xr.DataArray, what: str) -> xr.DataArray:
    """Return `da` with two dims."""
    plane = da.squeeze()
    if plane.ndim != 2:
        raise DataError(
            f"{what} must be one time step of two dims, got {dict(da.sizes)}; select one, for instance .isel(time=0)."
        )
    return plane.compute()


def _planes(
    coarse: xr.DataArray, bicubic: xr.DataArray, network: xr.DataArray, truth: xr.DataArray, grid: Grid
) -> tuple[list[_Plane], list[_Plane]]:
    """Return the four fields and the two errors, in canonical order."""
    units = truth.attrs.get("units", "")
    given = _single(coarse, "coarse")
    known = bare(truth, grid).astype(np.float64)
    fields = [_Plane(bare(given, grid_of(given)).values, grid_of(given), "coarse")]
    errors = []
    for name, field in (("bicubic", bicubic), ("network", network)):
        values = on_grid(_single(field, name), grid, what=name).astype(np.float64)
        rmse = float(weighted_mean((values - known) ** 2, grid.weights(), grid.dims)) ** 0.5
        fields.append(_Plane(values.values, grid, f"{name}, RMSE {rmse:.3g} {units}".rstrip()))
        errors.append(_Plane((values - known).values, grid, f"{name} − truth"))  # noqa: RUF001
    return [*fields, _Plane(known.values, grid, "truth")], errors


def _norms(fields: list[_Plane], errors: list[_Plane]) -> tuple[Normalize, Normalize]:
    """Return the colour scale of the four fields, and the symmetric one of the errors."""
    from matplotlib.colors import Normalize

    values = np.concatenate([plane.values[np.isfinite(plane.values)] for plane in fields])
    misses = np.abs(np.concatenate([plane.values[np.isfinite(plane.values)] for plane in errors]))
    if not values.size or not misses.size:
        raise DataError("There is no valid cell to draw: every value is NaN; check the selection.")
    low, high = np.percentile(values, [0.5, 99.5])
    most = float(np.percentile(misses, 99.5)) or 1.0
    return Normalize(low, high if high > low else low + 1.0), Normalize(-most, most)


class _Slots:
    """The panels of a canvas in drawing order, and where their colour bars and labels go."""

    def __init__(self, axes: np.ndarray, order: list[tuple[int, int]], bars: tuple[Any, Any, str]) -> None:
        self.axes, self.bars = axes, bars
        self.panels: list[Axes] = [axes[place] for place in order]
        self.mesh: dict[bool, Any] = {}

    def keep(self, mesh: Any, *, error: bool) -> None:
        self.mesh[error] = mesh

    def add_bars(self, figure: Figure, field: str, error: str) -> None:
        """Draw the two colour bars."""
        *places, side = self.bars
        for mesh, where, label in zip((self.mesh[False], self.mesh[True]), places, (field, error), strict=True):
            size = {"shrink": 0.9, "aspect": 30} if side == "bottom" else {"aspect": 25}
            figure.colorbar(
                mesh, ax=self.axes[where].ravel().tolist(), location=side, extend="both", label=label, **size
            )

    def label(self, grid: Grid) -> None:
        """Label the outer axes."""
        for ax in self.axes[-1, :]:
            ax.set_xlabel(_axis_name(grid, grid.x.dim))
        for ax in self.axes[:, 0]:
            ax.set_ylabel(_axis_name(grid, grid.y.dim))


def _canvas(plt: Any, grid: Grid) -> tuple[Figure, _Slots]:
    """Return a figure whose arrangement follows the shape of the domain: wide, square or tall."""
    aspect = _aspect(grid)
    width = float(grid.x.upper[-1] - grid.x.lower[0])
    shape = width / (float(grid.y.upper[-1] - grid.y.lower[0]) * aspect)  # of a panel, width over height
    everything = slice(None)
    if shape > 1.6:
        order = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
        rows, columns, bars = 3, 2, ((slice(0, 2), everything), (slice(2, 3), everything), "right")
        size = (11.5, 3 * 5.0 / shape + 1.6)
    elif shape > 0.75:
        order = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
        rows, columns, bars = 2, 3, ((everything, slice(0, 1)), (everything, slice(1, 3)), "bottom")
        size = (11.0, 2 * 3.2 / shape + 1.9)
    else:
        order = [(0, column) for column in range(6)]
        rows, columns, bars = 1, 6, ((everything, slice(0, 4)), (everything, slice(4, 6)), "bottom")
        size = (13.0, 1.9 / shape + 1.9)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.set_aspect(aspect)
        ax.set_facecolor("0.85")  # missing cells
    return figure, _Slots(axes, order, bars)


def _aspect(grid: Grid) -> float:
    """Return how much longer a degree of latitude is than one of longitude, mid-domain; 1 for wide domains."""
    if (grid.y.kind, grid.x.kind) != ("latitude", "longitude"):
        return 1.0
    low, high = float(grid.y.lower[0]), float(grid.y.upper[-1])
    return min(2.0, 1.0 / np.cos(np.deg2rad((low + high) / 2))) if high - low < 90.0 else 1.0


def _draw_map(ax: Axes, plane: _Plane, colours: str, norm: Normalize) -> Any:
    grid = plane.grid
    edges = [np.append(axis.lower, axis.upper[-1]) for axis in (grid.x, grid.y)]
    ax.set_title(plane.title)
    mesh = ax.pcolormesh(*edges, np.ma.masked_invalid(plane.values), cmap=colours, norm=norm, rasterized=True)
    for axis, which in ((grid.x, ax.xaxis), (grid.y, ax.yaxis)):
        if axis.kind != "other":
            _degrees(which, axis.kind == "longitude")
    return mesh


def _degrees(which: Any, longitude: bool) -> None:
    """Label an axis in degrees east and west, or north and south, at round steps."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def text(value: float, _: object) -> str:
        turned = (value + 180.0) % 360.0 - 180.0 if longitude else value
        side = ("E", "W") if longitude else ("N", "S")
        half = longitude and abs(turned) == 180.0
        letter = "" if turned == 0 or half else side[turned < 0]
        return f"{abs(turned):g}°{letter}"

    which.set_major_locator(MaxNLocator(nbins=5, steps=[1, 1.5, 2, 3, 4.5, 5, 6, 9, 10]))
    which.set_major_formatter(FuncFormatter(text))


def _draw_coast(ax: Axes, grid: Grid, land: xr.DataArray | None) -> None:
    """Draw the 0.5 contour of the land fraction, where the domain has land and sea."""
    if land is not None and float(land.min()) < 0.5 <= float(land.max()):
        ax.contour(grid.x.centres, grid.y.centres, land.values, levels=[0.5], colors="k", linewidths=0.6)


def _axis_name(grid: Grid, dim: str) -> str:
    lines = [c for c in grid.coords.coords.values() if c.dims == (dim,)]
    attrs = lines[0].attrs if lines else {}
    name = str(attrs.get("long_name") or attrs.get("standard_name") or dim).replace("_", " ")
    units = str(attrs.get("units", ""))
    return name if units.startswith("degree") or not units else f"{name} [{units}]"


def _headline(truth: xr.DataArray) -> str:
    name = str(truth.attrs.get("long_name") or truth.name or "")
    times = [c for n, c in truth.coords.items() if not c.ndim and str(n) in ("time", "valid_time")]
    when = str(times[0].values)[:16].replace("T", " ") if times else ""
    return ", ".join(part for part in (name, when) if part)
