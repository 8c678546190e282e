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
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid
from xsuperres.verify.alignment import on_grid
from xsuperres.verify.canvas import draw_coast, draw_map, make_canvas
from xsuperres.verify.surface import land_of, surface_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from xsuperres.model.artefact import SRModel

__all__ = ["plot_history", "plot_maps"]

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


def plot_history(model: SRModel, *, ax: Axes | None = None) -> Figure:
    """Draw how training went: the loss, and the validation score with the step whose weights the model has.

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
    >>> len(plot_history(model).axes)
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
    validation = (
        f"validation on {model.training.validation_kind}"
        if scored
        else "nothing was held out; the last average is kept"
    )
    figure.suptitle(f"{what}, scale {model.scale}: {validation}", fontsize="medium")
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
    best = int(np.nanargmin(record.rmse.values))
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
    right = ax.secondary_yaxis("right", functions=(lambda v: np.divide(v, linear), lambda v: np.multiply(v, linear)))
    right.set_ylabel("validation RMSE / linear")
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


def plot_maps(
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
    >>> figure = plot_maps(coarse, guess, guess, fine, title="toy")
    >>> [ax.get_title().splitlines() for ax in figure.axes[:2]]
    [['coarse'], ['bicubic', 'RMSE 4 K']]
    """
    plt = _pyplot()
    arrays = {"coarse": coarse, "bicubic": bicubic, "network": network, "truth": truth}
    planes = {name: Field(_single(da, name)) for name, da in arrays.items()}
    true, grid = planes["truth"].array, planes["truth"].grid
    units = str(true.attrs.get("units", ""))
    fields, errors = _maps(planes, units)
    land = land_of(surface_of([planes[name] for name in ("truth", "network", "bicubic")], grid)[0])
    colours = _norms(fields, errors)
    with plt.rc_context({"font.size": 9.0, "axes.titlesize": 10.0}):
        figure, canvas = make_canvas(plt, grid)
        for ax, plane in zip(canvas.panels, [*fields, *errors], strict=True):
            error = any(plane is e for e in errors)
            shades = _ERROR_COLOURS if error else _FIELD_COLOURS
            mesh = draw_map(ax, plane.values, plane.grid, colours=shades, norm=colours[error])
            draw_coast(ax, grid, land)
            canvas.title(ax, plane.title, units)
            canvas.keep(mesh, error=error)
        name = true.attrs.get("long_name") or true.name or "field"
        canvas.add_bars(figure, f"{name} [{units}]" if units else str(name), f"error [{units}]" if units else "error")
        canvas.label(grid)
        figure.suptitle(_headline(true) if title is None else title)
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


def _maps(planes: dict[str, Field], units: str) -> tuple[list[_Plane], list[_Plane]]:
    """Return the four fields and the two errors, in canonical order."""
    grid, coarse = planes["truth"].grid, planes["coarse"]
    true = planes["truth"].canonical().values.astype(np.float64)
    fields, errors = [_Plane(coarse.canonical().values, coarse.grid, "coarse")], []
    for name in ("bicubic", "network"):
        values = on_grid(planes[name], grid, what=name).values.astype(np.float64)
        error = values - true
        valid = np.isfinite(error)
        rmse = np.sqrt(np.average(error[valid] ** 2, weights=grid.area[valid])) if valid.any() else np.nan
        fields.append(_Plane(values, grid, f"{name}\nRMSE {rmse:.3g} {units}".rstrip()))
        errors.append(_Plane(error, grid, f"{name} − truth"))  # noqa: RUF001
    return [*fields, _Plane(true, grid, "truth")], errors


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


def _headline(truth: xr.DataArray) -> str:
    name = str(truth.attrs.get("long_name") or truth.name or "")
    times = [c for n, c in truth.coords.items() if not c.ndim and str(n) in ("time", "valid_time")]
    when = str(times[0].values)[:16].replace("T", " ") if times else ""
    return ", ".join(part for part in (name, when) if part)
