"""Archives: the accessor's method `downscale_to_zarr`.

Heavy modules are imported when the method needs them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from xsuperres.accessor.base import Accessor, T
from xsuperres.accessor.refine import PredictorsLike, Refining
from xsuperres.accessor.resample import Resampling

if TYPE_CHECKING:
    from xsuperres.model.artefact import SRModel

__all__ = ["Archiving"]

_UNNAMED = "field"  # what a DataArray without a name is stored as


class Archiving(Refining[T], Resampling[T], Accessor[T]):
    """`downscale_to_zarr`."""

    def downscale_to_zarr(
        self,
        store: Any,
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
        resume: bool = True,
        encoding: Mapping[Any, Mapping[str, Any]] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        memory_budget: int | None = None,
        progress: bool = True,
    ) -> T:
        """Apply a model to these coarse data and write the result to Zarr, region by region.

        A call that was interrupted, by a kill or a loss of power even, is gone on with by the same call: what is done
        is recorded in the store, together with digests of model, inputs and settings, and the final arrays are those of
        a call that was never interrupted, byte for byte on the same machine. Of inputs these digests cover names,
        coordinates and eight fields, from the first to the last: values that change elsewhere are not seen. Regions are
        computed by dask's scheduler in force, a distributed client's too, whose workers must see the store.

        Parameters
        ----------
        store : path, URL or Zarr store
            A local folder, ``s3://bucket/fine.zarr`` and whatever else fsspec knows, or a store object of Zarr.
        model : SRModel or path, optional
            By default the active model for this variable and `scale`.
        scale : int, optional
            Required without `model`; must be the model's.
        static, predictors, members, seed, batch_size, device, precision, compile, mask, check_range : optional
            As for `downscale`. A call may be gone on with by another `batch_size`, `device` or `compile`. `check_range`
            looks at data in memory first; lazy data are judged by what all runs of an archive have computed.
        resume : bool
            Go on with the archive of the same run that the store holds, or open it if it is finished. False: refuse
            any store that holds an archive, finished or only begun. Nothing that is there is ever deleted.
        encoding : mapping, optional
            Of variables, as for `Dataset.to_zarr`. By default fields are stored in chunks of 1 to 32 MiB, shuffled and
            compressed with zstd. Integers have their lowest value as `_FillValue`, unsigned ones the highest, if none
            is given.
        storage_options : mapping, optional
            Of the file system behind a URL.
        memory_budget : int, optional
            Bytes of the result that are written at once, and lost when the process dies; by default that of
            `xsuperres.set_options`. Give it a multiple of the workers that a cluster has.
        progress : bool
            Show a progress bar with fields per second and the time left.

        Returns
        -------
        DataArray or Dataset
            The finished archive, opened lazily; dims, units and attributes as from `downscale`, but for tuples and
            arrays among these, which come back as lists. The store holds cell bounds, CF attributes and consolidated
            metadata besides.

        Raises
        ------
        StoreError
            If the store holds an archive of another model, other inputs or settings, even one that is only begun, was
            not written by this method, cannot be written to or is not seen by the workers; or if another process is
            writing to the folder.
        XSuperResError
            If zarr is not installed, or whatever `downscale` raises.

        Examples
        --------
        >>> import tempfile
        >>> import xsuperres as xsr
        >>> field = xsr.testing.toy_field(time=6, y=16, x=24)
        >>> model = field.sr.fit(scale=2, optimization={"max_steps": 3}, progress=False, activate=False)
        >>> coarse, path = field.sr.coarsen(2), f"{tempfile.mkdtemp()}/fine.zarr"
        >>> fine = coarse.sr.downscale_to_zarr(path, model, progress=False)
        >>> fine.shape, fine.chunks is not None
        ((6, 16, 24), True)
        """
        import uuid

        from xsuperres.fields.checks import check_values
        from xsuperres.fields.predictors import named_predictors
        from xsuperres.fields.stack import check_together
        from xsuperres.inference.chunked import check_in_memory, downscale
        from xsuperres.inference.devices import Execution
        from xsuperres.inference.identity import encoding_text, identify
        from xsuperres.inference.placement import brought
        from xsuperres.inference.regions import in_blocks
        from xsuperres.inference.store import open_archive, region_budget, write_archive
        from xsuperres.inference.target import archive_target

        target, budget = archive_target(store, storage_options), region_budget(memory_budget)
        chosen, execution = self._model(model, scale), Execution(device=device, precision=precision, compile=compile)
        fields = self._fields(chosen.input_names)
        for da in fields:
            check_values(da)
        check_together(fields)
        coarse, mark = brought(fields, chosen, static=static is not None)
        common: dict[str, Any] = {"static": static, "predictors": predictors, "execution": execution}
        looked_at = check_in_memory(coarse, chosen, check_range=check_range, **common)
        options: dict[str, Any] = {"members": members, "seed": seed, "batch_size": batch_size, "mask": mask}
        options |= common | {"check_range": "ignore" if looked_at else check_range}
        options |= {"request": (request := uuid.uuid4().hex)}
        results = downscale(in_blocks(coarse, chosen, budget=budget), chosen, **options)
        results = [da.assign_attrs(mark) for da in results]
        fine = self._with_all(results)
        settings = {"scale": chosen.scale, "mask": mask, "precision": precision, "encoding": encoding_text(encoding)}
        settings |= {} if members is None else {"members": int(members), "seed": int(seed)}
        given = named_predictors(predictors)
        shown = [given[str(predictor.variable.name)] for predictor in chosen.predictors]
        run = identify(fine, fields, shown, settings)
        how: dict[str, Any] = {"resume": resume, "encoding": encoding, "budget": budget, "progress": progress}
        write_archive(target, fine, run, request, **how)
        return self._returned(open_archive(target, {str(da.name or _UNNAMED): da for da in results}, fine))

    def _with_all(self, results: Sequence[xr.DataArray]) -> xr.Dataset:
        """Return what an archive holds: the lazy results, the bounds of cells, and what else goes with them."""
        from xsuperres.errors import DataError
        from xsuperres.fields.checks import is_lazy
        from xsuperres.inference.template import loaded

        for da in results:
            if da.name is None and _UNNAMED in da.coords:
                raise DataError(
                    f"Data without a name are stored as {_UNNAMED!r}, but a coordinate has that name; give them one: "
                    "da.rename('tas')."
                )
        kept = self._returned(results)
        fine = type(self)(kept).with_bounds()
        names = [da.name or _UNNAMED for da in results]
        taken = [name for name in names if not is_lazy(fine[name])]
        if taken:
            raise DataError(f"The archive stores cell bounds under the names {taken}; rename these fields.")
        attrs: dict[Any, Any] = kept.attrs if isinstance(kept, xr.Dataset) else {}
        return loaded(fine.assign_attrs({**attrs, **fine.attrs}), names)
