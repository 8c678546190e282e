"""Models on workers: a small reference in the graph, one prepared model per process, device and precision.

The graph carries digest and path, never weights. A process finds the model among those it knows, else reads the
content-addressed file once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from xsuperres.errors import ConfigError, ModelFileError
from xsuperres.inference.apply import Prepared, prepare
from xsuperres.model.artefact import SRModel
from xsuperres.model.file import load_model, save_model
from xsuperres.model.table import known_model, remember
from xsuperres.options import cache_folder

__all__ = ["ModelReference", "admitted", "choose_device", "prepared_model", "refer"]

_PREPARED: dict[tuple[str, str], Prepared] = {}
_LOCK = threading.Lock()
_KEPT = 4  # prepared models per process; the oldest goes first
_UNUSED = 30 * 24 * 3600.0  # seconds
_ADMISSION: dict[int, threading.BoundedSemaphore] = {}


@dataclass(frozen=True)
class ModelReference:
    """What a task knows of its model: content digest, and a file that holds it (None: this process only)."""

    digest: str
    path: str | None


def refer(model: SRModel, *, to_file: bool) -> ModelReference:
    """Return a reference to `model`; with `to_file` other processes of this machine can follow it."""
    remember(model)
    if not to_file:
        return ModelReference(model.digest, None)
    folder = cache_folder() / "models"
    path = folder / f"{model.digest}.safetensors"
    if path.exists():
        with contextlib.suppress(OSError):
            path.touch()
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelFileError(
                f"Cannot make the cache folder {str(folder)!r} ({error}); name another one in the environment "
                "variable XSUPERRES_CACHE."
            ) from error
        save_model(model, path)
        _prune(folder)
    return ModelReference(model.digest, str(path))


def _prune(folder: Path) -> None:
    """Delete models that no graph has referred to for a month; they are copies."""
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _UNUSED:
                path.unlink()


def prepared_model(reference: ModelReference, device: str) -> Prepared:
    """Return the model behind a reference, prepared once per process and device."""
    key = (reference.digest, device)
    with _LOCK:
        if key not in _PREPARED:
            model = known_model(reference.digest) or _read(reference)
            while len(_PREPARED) >= _KEPT:
                del _PREPARED[next(iter(_PREPARED))]
            _PREPARED[key] = prepare(model, device)
        return _PREPARED[key]


def _read(reference: ModelReference) -> SRModel:
    if reference.path is None or not Path(reference.path).exists():
        raise ModelFileError(
            f"The model {reference.digest[:12]} is neither in this process nor at {reference.path!r}; keep the model "
            "object alive until the result is computed, or share the cache folder (XSUPERRES_CACHE) with the workers."
        )
    model = load_model(reference.path)
    if model.digest != reference.digest:
        raise ModelFileError(f"{reference.path!r} holds another model; delete this file and downscale again.")
    return remember(model)


def choose_device(device: str) -> str:
    """Return the device that "auto" means, or `device` if it is there.

    Raises
    ------
    ConfigError
        If torch does not see it.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device) if isinstance(device, str) else None
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be 'auto', 'cpu', 'cuda' or like 'cuda:0', got {device!r}.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={device!r} was asked for, but torch sees {torch.cuda.device_count()} GPU(s); use device='cpu' or "
            "'auto'."
        )
    return str(device)


def admitted() -> AbstractContextManager[object]:
    """Return a per-process gate for blocks on the CPU: cores // torch threads at a time, at least one."""
    with _LOCK:
        process = os.getpid()
        if process not in _ADMISSION:
            slots = max(1, (os.cpu_count() or 1) // torch.get_num_threads())
            _ADMISSION[process] = threading.BoundedSemaphore(slots)
        return _ADMISSION[process]
