"""The model file: one ``.safetensors`` file of tensors and a JSON header, checked by sha256, never pickled.

The file's sha256 covers every tensor (name, dtype, shape, bytes) and the header, because safetensors alone accepts a
flipped bit. The model's digest, by which it is known, leaves out what differs between identical trainings: seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from xsuperres.config import DataConfig, NetworkConfig
from xsuperres.errors import ModelFileError, UnknownNameError
from xsuperres.fields.baselines import LinearBaselines, Scaling
from xsuperres.fields.grid import grid_of
from xsuperres.fields.ranges import InputRange
from xsuperres.fields.static import StaticScaling
from xsuperres.fields.transform import Transform
from xsuperres.model.artefact import Predictor, SRModel, Target, TrainingRecord, Variable
from xsuperres.model.datasets import dataset_from_tensors, dataset_to_tensors, plain
from xsuperres.model.table import remember
from xsuperres.nn.discriminator import Discriminator, DiscriminatorSpec, build_discriminator
from xsuperres.nn.network import NetworkSpec, SuperResolution, build_network

__all__ = ["FORMAT_VERSION", "digest_of", "load_model", "model_from_bytes", "model_to_bytes", "save_model"]

FORMAT_VERSION = 3
_KEY = "xsuperres"


def save_model(model: SRModel, path: str | os.PathLike[str]) -> None:
    """Write `model` beside `path`, then rename, so that the file appears whole or not at all."""
    target = Path(path).expanduser()
    data = model_to_bytes(model)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise ModelFileError(
            f"Cannot write the model to {str(target)!r}: {error}; choose a folder you can write to."
        ) from error
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        beside.chmod(0o666 & ~_umask())
        beside.replace(target)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise ModelFileError(f"Cannot write the model to {str(target)!r}: {error}; nothing was changed.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_model(path: str | os.PathLike[str]) -> SRModel:
    """Read a model file.

    Parameters
    ----------
    path : path-like
        Written by `SRModel.save`.

    Returns
    -------
    SRModel

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, altered, of a newer format, or not a model.
    """
    target = Path(path).expanduser()
    try:
        data = target.read_bytes()
    except OSError as error:
        raise ModelFileError(f"Cannot read the model file {str(target)!r}: {error}.") from error
    return remember(model_from_bytes(data, source=str(target)))


def model_to_bytes(model: SRModel) -> bytes:
    """Return the content of the model file."""
    import safetensors.torch

    tensors, header = _parts(model)
    header["sha256"] = _digest(tensors, header)
    return safetensors.torch.save(tensors, metadata={_KEY: json.dumps(header)})


def model_from_bytes(data: bytes, *, source: str = "bytes") -> SRModel:
    """Return the model from the content of a model file; see `load_model` for the errors."""
    import safetensors.torch

    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        header = json.loads(metadata[_KEY])
        if not isinstance(header, dict):
            raise TypeError("the header is not a mapping")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(
            f"{source!r} is not an xsuperres model, or is damaged at its beginning; expected a file written by "
            "model.save(path)."
        ) from error
    version = header.get("format")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ModelFileError(f"{source!r} is damaged: its format is {version!r}, expected a whole number from 1.")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{source!r} has model format {version}, this version reads up to {FORMAT_VERSION}; "
            f"upgrade xsuperres (written by {header.get('package')})."
        )
    if version < FORMAT_VERSION:
        raise ModelFileError(
            f"{source!r} has model format {version} of an unreleased version, this one reads {FORMAT_VERSION}; "
            "train the model anew."
        )
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:
        raise ModelFileError(f"{source!r} is truncated or damaged ({error}); copy it again from its source.") from error
    recorded = header.pop("sha256", None)
    if recorded != _digest(tensors, header):
        raise ModelFileError(
            f"{source!r} was altered: its content does not match its sha256; copy it again from its source."
        )
    try:
        return _model(tensors, header)
    except UnknownNameError as error:
        raise ModelFileError(
            f"{source!r} was trained with a part that is not registered in this process: {error} Import the module (or "
            "run the notebook cell) that registers it first, then load again."
        ) from error


def digest_of(model: SRModel) -> str:
    """Return the sha256 of all that makes a model's results: not the seconds of its training, nor a discriminator."""
    tensors, header = _parts(replace(model, discriminator=None))
    header["training"].pop("cpu_seconds")
    header["training"]["history"].pop("seconds", None)
    return _digest(tensors, header)


def _digest(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> str:
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()


def _parts(model: SRModel) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    arrays = {} if model.fine_mask is None else {"fine_mask": model.fine_mask}
    for index, target in enumerate(model.targets):
        arrays |= {f"targets.{index}.{name}": plane for name, plane in _planes(target).items()}
    for index, part in enumerate(model.ranges):
        arrays |= {f"ranges.{index}.{name}": getattr(part, name) for name in _RANGE}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(plane)) for name, plane in arrays.items()}
    networks = {"network": model.network, "discriminator": model.discriminator}
    for prefix, network in networks.items():
        weights = {} if network is None else network.state_dict()
        tensors |= {f"{prefix}.{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()}
    coords, coords_header = dataset_to_tensors(xr.Dataset(coords=model.grid.coords), "coords.")
    static, static_header = dataset_to_tensors(model.static, "static.")
    header = {
        "format": FORMAT_VERSION,
        "package": f"xsuperres {model.training.versions.get('xsuperres', '')}".strip(),
        "spec": _spec_header(model.spec),
        "discriminator": None if model.discriminator is None else asdict(model.discriminator.spec),
        "targets": [_target_header(target) for target in model.targets],
        "predictors": [plain(asdict(predictor)) for predictor in model.predictors],
        "static_scaling": asdict(model.static_scaling),
        "data": plain(asdict(model.data)),
        "training": _training_header(model.training),
        "origin": model.origin,
        "margin": list(model.margin),
        "paired": model.paired,
        "dims": list(model.grid.dims),
        "halo": model.halo,
        "stride": 1,
        "coords": coords_header,
        "static": static_header,
    }
    header |= {"grid_mapping": plain(dict(model.grid.mapping))} if model.grid.mapping else {}
    return tensors | coords | static, json.loads(json.dumps(header))


_PLANES = tuple(field.name for field in fields(LinearBaselines) if field.name != "residual_sd")
_RANGE = tuple(field.name for field in fields(InputRange))
_CLIMATOLOGY = ("coarse_mean", "fine_mean")
_FLAGGED = ("supervised", "adversarial")  # kinds of training, by the flag "adversarial"


def _planes(target: Target) -> dict[str, np.ndarray]:
    planes = {name: getattr(target.baselines, name) for name in _PLANES}
    return planes | dict(zip(_CLIMATOLOGY, target.climatology or (), strict=False))


def _target_header(target: Target) -> dict[str, Any]:
    return {
        "variable": plain(asdict(target.variable)),
        "source": None if target.source is None else plain(asdict(target.source)),
        "scaling": asdict(target.scaling),
        "residual_sd": target.baselines.residual_sd,
        "transform": asdict(target.transform),
        "bounds": plain(target.bounds),
    }


def _target(header: dict[str, Any], planes: dict[str, np.ndarray]) -> Target:
    means = [planes.pop(name) for name in _CLIMATOLOGY if name in planes]
    return Target(
        variable=Variable(**header["variable"]),
        scaling=Scaling(**header["scaling"]),
        baselines=LinearBaselines(**planes, residual_sd=header["residual_sd"]),
        transform=Transform(**header["transform"]),
        climatology=(means[0], means[1]) if means else None,
        bounds=(header["bounds"][0], header["bounds"][1]),
        source=None if header["source"] is None else Variable(**header["source"]),
    )


def _spec_header(spec: NetworkSpec) -> dict[str, Any]:
    """Return the spec as format 3 has it: the deterministic head goes without saying."""
    header = asdict(spec)
    if spec.head == NetworkSpec.head:
        del header["head"]
    return header


def _training_header(record: TrainingRecord) -> dict[str, Any]:
    """Return the record as format 3 has it: two kinds of training, told apart by a flag; others by name besides."""
    header = plain(asdict(record))
    kind = header.pop("kind")
    return header | {"adversarial": kind == "adversarial"} | ({} if kind in _FLAGGED else {"kind": kind})


def _training(header: dict[str, Any]) -> TrainingRecord:
    header = dict(header)
    kind = _FLAGGED[header.pop("adversarial")]
    return _tuples(TrainingRecord, {"kind": kind} | header)


def _predictor(header: dict[str, Any]) -> Predictor:
    variable, scaling = Variable(**header["variable"]), Scaling(**header["scaling"])
    return Predictor(variable=variable, scaling=scaling, contrast_sd=header["contrast_sd"])


def _ranges(tensors: dict[str, torch.Tensor], count: int) -> tuple[InputRange, ...]:
    found = [_below(tensors, f"ranges.{index}") for index in range(count)]
    return tuple(InputRange(**{name: plane.numpy() for name, plane in planes.items()}) for planes in found)


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with `prefix` and a dot, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _network(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> SuperResolution:
    spec = dict(header["spec"])
    spec["config"] = NetworkConfig(**spec["config"])
    spec |= {name: _tuple(spec[name]) for name in ("domain", "masks")}
    network = build_network(NetworkSpec(**spec))
    network.load_state_dict(_below(tensors, "network"))
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def _discriminator(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> Discriminator | None:
    if header["discriminator"] is None:
        return None
    discriminator = build_discriminator(DiscriminatorSpec(**header["discriminator"]))
    discriminator.load_state_dict(_below(tensors, "discriminator"))
    return discriminator.eval()


def _model(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> SRModel:
    network = _network(tensors, header)
    coords = dataset_from_tensors(tensors, header["coords"], "coords.")
    coords = coords.set_coords(list(coords.variables))
    dims = header["dims"]
    plane = xr.DataArray(np.zeros([coords.sizes[d] for d in dims]), dims=dims, coords=coords.coords)
    targets = [
        _target(part, {name: t.numpy() for name, t in _below(tensors, f"targets.{index}").items()})
        for index, part in enumerate(header["targets"])
    ]
    return SRModel(
        spec=network.spec,
        network=network,
        targets=tuple(targets),
        predictors=tuple(_predictor(part) for part in header["predictors"]),
        ranges=_ranges(tensors, len(header["targets"]) + len(header["predictors"])),
        discriminator=_discriminator(tensors, header),
        static_scaling=_tuples(StaticScaling, header["static_scaling"]),
        data=DataConfig(**header["data"]),
        grid=replace(grid_of(plane, gaps=True), mapping=header.get("grid_mapping", {})),
        static=dataset_from_tensors(tensors, header["static"], "static."),
        training=_training(header["training"]),
        fine_mask=tensors["fine_mask"].numpy() if "fine_mask" in tensors else None,
        origin=header["origin"],
        margin=tuple(header["margin"]),
        paired=header["paired"],
    )


def _tuples(kind: Any, values: dict[str, Any]) -> Any:
    """Return the dataclass `kind` with JSON's lists made tuples again, but for those inside mappings."""
    return kind(**{name: _tuple(value) for name, value in values.items()})


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value
