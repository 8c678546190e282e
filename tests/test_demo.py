"""The demo and the notebooks, run as a newcomer would."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.image
import nbformat
import numpy as np
import pytest
import xarray as xr
from nbclient import NotebookClient

import xsuperres as xsr
from xsuperres import demo
from xsuperres.samples.holdout import cut_band
from xsuperres.verify import plots

CUT_SHORT = {
    r'"max_steps": \d+': '"max_steps": 10',
    r'"era5_global_1deg"\)': r"\g<0>.isel(time=slice(18), lat=slice(None, None, 3))",
    r"np\.arange\(1990, 2089, 6\)": "np.arange(1990, 2089, 12)",
    r"members=12": "members=3",
}
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run the demo with few steps; its skill is measured by ``make demo`` itself."""
    folder = tmp_path_factory.mktemp("demo")
    demo.main(["--output", str(folder), "--steps", "20", "--quiet"])
    return folder


@pytest.mark.slow
def test_demo_writes_everything(folder):
    assert {path.name for path in folder.iterdir()} == {
        "history.png",
        "maps.png",
        "score.json",
        "tas_fine.nc",
        "tas_x4.safetensors",
    }


@pytest.mark.slow
def test_demo_score(folder):
    record = json.loads((folder / "score.json").read_text())
    assert {"network", "bilinear", "bicubic", "lapse", "static_regression"} <= set(record["rmse"])
    assert {"ratio_to_bicubic", "cpu_seconds", "wall_seconds", "steps", "seed", "versions"} <= set(record)
    assert record["steps"] == 20
    assert record["ratio_to_bicubic"] == pytest.approx(record["rmse"]["network"] / record["rmse"]["bicubic"])
    # Even so few steps do not fall behind the linear baseline that training starts from.
    assert record["rmse"]["network"] < 1.005 * record["rmse"]["static_regression"] < record["rmse"]["bicubic"]


@pytest.mark.slow
def test_demo_field_is_the_model_applied(folder):
    tas = xsr.tutorial.open_dataset("era5_global_1deg").tas
    _, band = cut_band(tas, *demo.BAND)
    with xr.open_dataset(folder / "tas_fine.nc", decode_coords="all") as ds:
        assert ds.tas.attrs["units"] == "K"
        assert ds.attrs["Conventions"].startswith("CF")
        assert ds.lat_bnds.max() == 90.0
        again = band.sr.coarsen(4).sr.downscale(folder / "tas_x4.safetensors", static=tas)
        np.testing.assert_allclose(ds.tas.values, again.values, atol=1e-4)
        assert ds.lat.equals(band.lat.drop_vars(["elevation", "land_fraction"], errors="ignore"))


@pytest.mark.slow
def test_demo_pictures_are_no_blank_sheets(folder):
    for name in ("maps.png", "history.png"):
        picture = matplotlib.image.imread(folder / name)
        assert min(picture.shape[:2]) > 300
        assert picture.std() > 0.05


@pytest.mark.slow
def test_demo_maps_have_six_panels_shared_scales_and_labels(folder):
    tas = xsr.tutorial.open_dataset("era5_global_1deg").tas
    _, band = cut_band(tas.isel(time=[12]), *demo.BAND)
    coarse = band.sr.coarsen(4)
    bicubic = coarse.sr.interpolate(4, like=band)
    figure = plots.plot_maps(*(field.isel(time=0) for field in (coarse, bicubic, bicubic, band)))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert len(panels) == 6
    limits = [axes.collections[0].get_clim() for axes in panels]
    assert len(set(limits[:4])) == 1
    assert len(set(limits[4:])) == 1
    assert limits[4][0] == -limits[4][1]
    assert any("[K]" in axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    """Every cell runs, on a quarter of the data and cut short: the committed outputs came from the full run."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for full, short in CUT_SHORT.items():
            cell.source = re.sub(full, short, cell.source)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_clean_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = json.dumps([output.get("text", "") for output in outputs])
    assert "Warning" not in text
    assert "site-packages" not in text
    assert not any(output.output_type == "error" for output in outputs)
