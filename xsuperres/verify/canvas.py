"""The canvas of `maps`: six panels arranged by the shape of the domain, two colour bars, degrees, coastlines.

Canonical planes and grids in, matplotlib artists out; matplotlib itself is handed in or imported when drawing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xsuperres.fields.grid import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

__all__ = ["Canvas", "draw_coast", "draw_map", "make_canvas"]

_TITLES = 120  # characters of titles that fit side by side


class Canvas:
    """The panels of a canvas in drawing order, and where their colour bars and labels go."""

    def __init__(self, axes: np.ndarray, order: list[tuple[int, int]], bars: tuple[Any, Any, str]) -> None:
        self.axes, self.bars = axes, bars
        self.panels: list[Axes] = [axes[place] for place in order]
        self.mesh: dict[bool, Any] = {}

    def keep(self, mesh: Any, *, error: bool) -> None:
        """Remember a drawn map of the fields, or of the errors, for its colour bar."""
        self.mesh[error] = mesh

    def title(self, ax: Axes, text: str, units: str) -> None:
        """Write a panel's title; in narrow panels units go on a second line."""
        wide = max(map(len, text.splitlines())) * self.axes.shape[1] > _TITLES
        ax.set_title(text.replace(f" {units}", f"\n{units}") if wide and units else text)

    def add_bars(self, figure: Figure, field: str, error: str) -> None:
        """Draw the two colour bars."""
        from matplotlib.ticker import ScalarFormatter

        *places, side = self.bars
        for mesh, where, label in zip((self.mesh[False], self.mesh[True]), places, (field, error), strict=True):
            panels = self.axes[where]
            along = panels.shape[1 if side == "bottom" else 0]
            bar = figure.colorbar(
                mesh,
                ax=panels.ravel().tolist(),
                location=side,
                extend="both",
                label=label,
                shrink=0.9,
                aspect=12 * along,
                panchor=(0.5, 1.0),  # maps right below their titles, or the layout takes the space above for room
            )
            if isinstance(bar.formatter, ScalarFormatter):
                bar.formatter.set_powerlimits((-2, 4))
                bar.update_ticks()

    def label(self, grid: Grid) -> None:
        """Label the outer axes."""
        for ax in self.axes[-1, :]:
            ax.set_xlabel(_axis_name(grid, grid.x.dim))
        for ax in self.axes[:, 0]:
            ax.set_ylabel(_axis_name(grid, grid.y.dim))


def make_canvas(plt: Any, grid: Grid) -> tuple[Figure, Canvas]:
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
        size = (13.0, 1.9 / shape + 2.1)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.set_aspect(aspect)
        ax.set_facecolor("0.85")  # missing cells
    return figure, Canvas(axes, order, bars)


def _aspect(grid: Grid) -> float:
    """Return how much longer a degree of latitude is than one of longitude, mid-domain; 1 for wide domains."""
    if (grid.y.kind, grid.x.kind) != ("latitude", "longitude"):
        return 1.0
    low, high = float(grid.y.lower[0]), float(grid.y.upper[-1])
    return min(2.0, 1.0 / np.cos(np.deg2rad((low + high) / 2))) if high - low < 90.0 else 1.0


def draw_map(ax: Axes, values: np.ndarray, grid: Grid, *, colours: str, norm: Normalize) -> Any:
    """Draw a canonical field, each cell from bound to bound."""
    edges = [np.append(axis.lower, axis.upper[-1]) for axis in (grid.x, grid.y)]
    mesh = ax.pcolormesh(*edges, np.ma.masked_invalid(values), cmap=colours, norm=norm, rasterized=True)
    for axis, which in ((grid.x, ax.xaxis), (grid.y, ax.yaxis)):
        if axis.kind != "other" and not _axis_name(grid, axis.dim).startswith(("grid", "rotated", "r")):
            _degrees(which, axis.kind == "longitude", most=3 if axis is grid.x and _columns(ax) > 3 else 5)
    return mesh


def _columns(ax: Axes) -> int:
    """Return how many panels a row has."""
    place = ax.get_subplotspec()
    return 1 if place is None else int(place.get_gridspec().ncols)


def _degrees(which: Any, longitude: bool, most: int) -> None:
    """Label an axis in degrees east and west, or north and south, at `most` round steps."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def text(value: float, _: object) -> str:
        turned = (value + 180.0) % 360.0 - 180.0 if longitude else value
        side = ("E", "W") if longitude else ("N", "S")
        half = longitude and abs(turned) == 180.0
        letter = "" if turned == 0 or half else side[int(turned < 0)]
        return f"{abs(turned):g}°{letter}"

    which.set_major_locator(MaxNLocator(nbins=most, steps=[1, 1.5, 2, 3, 4.5, 5, 6, 9, 10]))
    which.set_major_formatter(FuncFormatter(text))


def draw_coast(ax: Axes, grid: Grid, land: xr.DataArray | None) -> None:
    """Draw the 0.5 contour of the land fraction, where the domain has land and sea."""
    if land is not None and float(land.min()) < 0.5 <= float(land.max()):
        ax.contour(grid.x.centres, grid.y.centres, land.values, levels=[0.5], colors="k", linewidths=0.6)


def _axis_name(grid: Grid, dim: str) -> str:
    lines = [c for c in grid.coords.values() if c.dims == (dim,)]
    attrs = lines[0].attrs if lines else {}
    name = str(attrs.get("long_name") or attrs.get("standard_name") or dim).replace("_", " ")
    units = str(attrs.get("units", ""))
    return name if units.startswith("degree") or not units else f"{name} [{units}]"
