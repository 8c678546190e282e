"""Models on workers: a small reference in the graph, one prepared model per process and execution.

The graph carries digest and path, never weights. A process finds the model among those it knows, else reads, once, the
copy that a connected client sent to its worker, or the content-addressed file.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xsuperres.errors import ModelFileError, XSuperResError
from xsuperres.inference.devices import Execution
from xsuperres.inference.prepared import Prepared, prepare
from xsuperres.model.artefact import SRModel
from xsuperres.model.file import load_model, model_to_bytes, save_model
from xsuperres.model.table import known_model, remember
from xsuperres.options import cache_folder

__all__ = ["ModelReference", "connected_client", "copied", "preparations", "prepared_model", "refer"]

logger = logging.getLogger(__name__)

Key = tuple[str, Execution]
_PREPARED: dict[Key, Prepared] = {}
_COUNTS: Counter[Key] = Counter()
_COPIES: dict[str, Path] = {}  # of the worker in this process, by digest
_SENT: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()  # digests, by client
_LOCK = threading.Lock()
_KEPT = 4  # prepared models per process; the one not used for longest goes first
_UNUSED = 30 * 24 * 3600.0  # seconds


@dataclass(frozen=True)
class ModelReference:
    """What a task knows of its model: content digest, and a file that holds it (None: this process only)."""

    digest: str
    path: str | None


def refer(model: SRModel, *, to_file: bool) -> ModelReference:
    """Return a reference to `model`; with `to_file` other processes can follow it.

    Those of this machine find the model in a cache file. The workers of a connected client, which may share no disk
    with it, are sent a copy once, those that join later too.
    """
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
    _send(model)
    return ModelReference(model.digest, str(path))


def _prune(folder: Path) -> None:
    """Delete models that no graph has referred to for a month; they are copies."""
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _UNUSED:
                path.unlink()


def _send(model: SRModel) -> None:
    """Give the workers of the connected client, if there is one, a copy of the model."""
    client = connected_client()
    if client is None or model.digest in _SENT.setdefault(client, set()):
        return
    from xsuperres.inference.plugin import ModelCopy

    try:
        client.register_plugin(ModelCopy(model.digest, model_to_bytes(model)))
    except ImportError as error:
        raise XSuperResError(
            f"The workers cannot run this model: {error}. Install the same xsuperres, with torch, there as here."
        ) from error
    _SENT[client].add(model.digest)


def connected_client() -> Any:
    """Return the client that is connected, None without one; nothing is imported for it."""
    if "distributed" not in sys.modules:
        return None
    from distributed import default_client

    try:
        client = default_client()
    except ValueError:
        return None
    if client.asynchronous:
        logger.info("The client is asynchronous: workers will read the model from the cache folder.")
        return None
    return client


def copied(digest: str, path: Path) -> None:
    """Tell this process, a worker's, where its copy of a model lies."""
    _COPIES[digest] = path


def preparations() -> dict[Key, int]:
    """Return how often this process has prepared each model: once, unless more were in use than are kept."""
    return dict(_COUNTS)


def prepared_model(reference: ModelReference, execution: Execution) -> Prepared:
    """Return the model behind a reference, prepared once per process and execution."""
    key = (reference.digest, execution)
    with _LOCK:
        if key not in _PREPARED:
            model = known_model(reference.digest) or _read(reference)
            while len(_PREPARED) >= _KEPT:
                del _PREPARED[next(iter(_PREPARED))]
            _PREPARED[key] = prepare(model, execution)
            _COUNTS[key] += 1
        _PREPARED[key] = _PREPARED.pop(key)  # now the last to go
        return _PREPARED[key]


def _read(reference: ModelReference) -> SRModel:
    paths = [_COPIES.get(reference.digest), None if reference.path is None else Path(reference.path)]
    there = next((path for path in paths if path is not None and path.exists()), None)
    if there is None:
        raise ModelFileError(
            f"The model {reference.digest[:12]} is neither in this process nor at {reference.path!r}. Keep the model "
            "object alive until the result is computed; on a cluster connect the client before calling downscale, or "
            "share the cache folder (XSUPERRES_CACHE) with the workers."
        )
    model = load_model(there)
    if model.digest != reference.digest:
        raise ModelFileError(f"{str(there)!r} holds another model; delete this file and downscale again.")
    return remember(model)
