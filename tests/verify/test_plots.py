"""Pictures: how many panels, which limits, labels and lines."""

import builtins

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh
from matplotlib.contour import QuadContourSet

from xsuperres.errors import DataError, GridError, XSuperResError
from xsuperres.testing import toy_field
from xsuperres.verify.plots import plot_history, plot_maps

TITLES = ["coarse", "bicubic", "network", "truth", "bicubic − truth", "network − truth"]  # noqa: RUF001


@pytest.fixture(scope="module")
def model():
    fine = toy_field(time=6, y=16, x=24)
    return fine.sr.fit(2, optimization={"max_steps": 6}, progress=False, activate=False)


def pictures(y=16, x=24, change=lambda da: da, **more):
    truth = toy_field(time=1, y=y, x=x, **more)
    coarse = truth.sr.coarsen(2)
    bicubic = coarse.sr.interpolate(2, like=truth)
    network = (0.7 * bicubic + 0.3 * truth).assign_attrs(truth.attrs)
    return [change(field) for field in (coarse, bicubic, network, truth)]


def panels(figure):
    return [ax for ax in figure.axes if ax.get_title()]


def meshes(figure):
    return [next(c for c in ax.collections if isinstance(c, QuadMesh)) for ax in panels(figure)]


@pytest.mark.parametrize(("y", "x"), [(16, 48), (24, 24), (48, 16)])
def test_six_maps_two_scales(y, x):
    figure = plot_maps(*pictures(y, x))
    figure.canvas.draw()
    assert len(figure.axes) == 8  # six maps, two colour bars
    by_title = {ax.get_title().split("\n")[0]: ax for ax in panels(figure)}
    assert sorted(by_title) == sorted(TITLES)
    mesh = {title: next(c for c in ax.collections if isinstance(c, QuadMesh)) for title, ax in by_title.items()}
    assert len({mesh[title].get_clim() for title in TITLES[:4]}) == 1
    assert len({mesh[title].get_clim() for title in TITLES[4:]}) == 1
    low, high = mesh[TITLES[4]].get_clim()
    assert low == -high
    assert {mesh[title].cmap.name for title in TITLES[4:]} == {"RdBu_r"}
    bars = [ax for ax in figure.axes if not ax.get_title()]
    labels = {ax.get_xlabel() or ax.get_ylabel() for ax in bars}
    assert labels == {"Air temperature [K]", "error [K]"}


def test_titles_tell_the_rmse():
    coarse, bicubic, network, truth = pictures()
    square = ((bicubic.astype(float) - truth.astype(float)) ** 2).weighted(np.cos(np.deg2rad(truth.lat))).mean()
    titles = [ax.get_title() for ax in panels(plot_maps(coarse, bicubic, network, truth))]
    assert f"bicubic\nRMSE {float(square) ** 0.5:.3g} K" in titles
    assert any(title.startswith("network\nRMSE ") and title.endswith(" K") for title in titles)


def test_errors_and_orientation():
    fields = pictures()
    turned = [f.isel(lat=slice(None, None, -1)).transpose("lon", "lat", "time") for f in fields]
    first, second = (meshes(plot_maps(*given)) for given in (fields, turned))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.get_array(), b.get_array())
    expected = (fields[1] - fields[3]).squeeze()
    np.testing.assert_allclose(first[4].get_array(), expected, atol=1e-4)


def test_coast_from_the_land_fraction():
    def coasts(figure):
        return [sum(isinstance(c, QuadContourSet) for c in ax.collections) for ax in panels(figure)]

    fields = pictures()
    assert coasts(plot_maps(*fields)) == [1] * 6
    assert coasts(plot_maps(*(f.drop_vars("land_fraction") for f in fields))) == [0] * 6
    fields[3] = fields[3].drop_vars("land_fraction")
    assert coasts(plot_maps(*fields)) == [1] * 6  # still known from the network's field


def test_axes_speak_degrees():
    figure = plot_maps(*pictures(periodic=True))
    figure.canvas.draw()
    outer = [ax for ax in panels(figure) if ax.get_xlabel()]
    assert {ax.get_xlabel() for ax in outer} == {"longitude"}
    assert {ax.get_ylabel() for ax in panels(figure) if ax.get_ylabel()} == {"latitude"}
    texts = [t.get_text() for ax in panels(figure) for t in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    assert {"90°E", "90°W", "180°", "0°"} <= set(texts)
    assert any(text.endswith("°S") for text in texts)
    (aspect,) = {ax.get_aspect() for ax in panels(plot_maps(*pictures()))}
    assert aspect == pytest.approx(1 / np.cos(np.deg2rad(20.0 - 0.4)))


def test_projected_grid_has_its_own_labels():
    def projected(da):
        attrs = {"standard_name": "projection_y_coordinate", "units": "km"}
        x = ("x", 25.0 * np.arange(da.sizes["lon"]), {**attrs, "standard_name": "projection_x_coordinate"})
        y = ("y", 25.0 * np.arange(da.sizes["lat"]), attrs)
        return da.drop_vars(["lat", "lon"]).rename(lat="y", lon="x").assign_coords(x=x, y=y)

    truth = projected(toy_field(time=1, y=16, x=24))
    coarse = truth.sr.coarsen(2)
    bicubic = coarse.sr.interpolate(2, like=truth)
    figure = plot_maps(coarse, bicubic, bicubic, truth, title="mine")
    assert {ax.get_xlabel() for ax in panels(figure)} - {""} == {"projection x coordinate [km]"}
    assert figure.get_suptitle() == "mine"


def test_missing_cells_and_headline():
    coarse, bicubic, network, truth = pictures()
    truth = truth.where(truth.lon > 5)
    figure = plot_maps(coarse, bicubic, network, truth)
    assert figure.get_suptitle() == "Air temperature, 2001-01-01 00:00"
    assert np.ma.getmaskarray(meshes(figure)[4].get_array()).any()
    with pytest.raises(DataError, match="no valid cell"):
        plot_maps(*(field * np.nan for field in (coarse, bicubic, network, truth)))


def test_bad_maps_are_refused():
    coarse, bicubic, network, truth = pictures()
    with pytest.raises(GridError, match="network lies on other cells"):
        plot_maps(coarse, bicubic, network.isel(lat=slice(2, None)), truth)
    with pytest.raises(DataError, match="one time step"):
        plot_maps(coarse, bicubic, network, xr.concat([truth, truth], "time"))


def test_history(model):
    figure = plot_history(model)
    loss, validation = figure.axes[:2]
    assert loss.get_ylabel() == "training loss"
    assert validation.get_ylabel() == "validation RMSE / bicubic"
    assert [child.get_ylabel() for child in validation.child_axes] == ["validation RMSE / linear"]
    assert validation.get_xlabel() == "training step"
    record = model.history
    np.testing.assert_array_equal(validation.lines[0].get_ydata(), record.ratio_to_bicubic)
    linear = float((record.ratio_to_bicubic / record.ratio_to_linear)[0])
    assert validation.lines[1].get_ydata()[0] == pytest.approx(linear)
    kept = next(line for line in validation.lines if str(line.get_label()).startswith("kept"))
    best = int(record.rmse.values.argmin())
    assert kept.get_xdata()[0] == record.step[best]
    assert f"{model.training.validation['ratio_to_bicubic']:.3f} of bicubic" in kept.get_label()
    assert "scale 2" in figure.get_suptitle()


def test_history_into_given_axes(model):
    figure, ax = plt.subplots()
    assert plot_history(model, ax=ax) is figure
    assert ax.get_ylabel() == "validation RMSE / bicubic"
    plt.close(figure)


def test_history_without_validation():
    fine = toy_field(time=6, y=16, x=24)
    model = fine.sr.fit(2, optimization={"max_steps": 3}, validation=None, progress=False, activate=False)
    figure = plot_history(model)
    assert [ax.get_ylabel() for ax in figure.axes] == ["training loss"]
    assert "nothing was held out" in figure.get_suptitle()


def test_figures_are_closed_for_pyplot(model):
    plt.close("all")
    plot_history(model)
    plot_maps(*pictures())
    assert plt.get_fignums() == []


def test_without_matplotlib(model, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(XSuperResError, match=r"xsuperres\[viz\]"):
        plot_history(model)


def boxes_of(figure) -> list[tuple[str, object]]:
    """Return titles and labels of a laid out figure, and the colour bars, with their boxes."""
    figure.draw_without_rendering()
    bars = [ax for ax in figure.axes if not ax.get_title()]
    found = [("headline", figure._suptitle.get_window_extent())]
    found += [(f"bar {at}", ax.get_window_extent()) for at, ax in enumerate(bars)]
    for ax in figure.axes:
        texts = [text for text in (ax.title, ax.xaxis.label, ax.yaxis.label) if text.get_text()]
        found += [(text.get_text(), text.get_window_extent()) for text in texts]
    return found


@pytest.mark.parametrize("units", ["K", "kg m-2 s-1"])
@pytest.mark.parametrize(("y", "x"), [(16, 48), (24, 24), (48, 60), (48, 16), (96, 16), (30, 24)])
def test_no_text_overlaps_another(y, x, units):
    def small(da):
        return (da * 1e-6).assign_attrs(units=units, long_name="Precipitation") if units != "K" else da

    figure = plot_maps(*pictures(y, x, change=small))
    assert any(title.endswith(units) and "\nRMSE " in title for title in (ax.get_title() for ax in panels(figure)))
    boxes = boxes_of(figure)
    for at, (name, box) in enumerate(boxes):
        assert [other for other, its in boxes[at + 1 :] if box.overlaps(its)] == [], name
        assert box.y0 >= 0 and box.y1 <= figure.bbox.height, name
