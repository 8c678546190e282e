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
from xsuperres.inference.devices import Execution, is_short_of_memory
from xsuperres.inference.prepared import Prepared, bytes_of, prepare
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
_SENT: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()  # plugins by digest, by client
_LOCK = threading.Lock()
_SENDING = threading.Lock()
_ROOM = 2**30  # bytes of prepared models that a process keeps; those not used for longest go first
_SENT_AT_MOST = 16  # models that a scheduler keeps for workers to come; the one not used for longest goes first
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
    if client is None:
        if (other := _default_client()) is not None:
            state = "asynchronous" if other.asynchronous else other.status
            logger.warning("The client is %s: its workers are sent no model, they need the cache folder.", state)
        return
    with _SENDING:
        sent = _SENT.setdefault(client, {})
        if model.digest not in sent:
            from xsuperres.inference.plugin import model_copy

            if not sent:
                _check_workers(client)
            name = f"xsuperres-model-{model.digest}"
            client.register_plugin(model_copy(model.digest, model_to_bytes(model)), name=name)
            sent[model.digest] = name
        sent[model.digest] = sent.pop(model.digest)  # now the last to go
        if len(sent) > _SENT_AT_MOST:
            client.unregister_worker_plugin(sent.pop(next(iter(sent))))


def _check_workers(client: Any) -> None:
    """Refuse workers that cannot run a model: what would come of it there is no error that says so."""
    found = client.run(exec, "import safetensors, xsuperres.inference.tile", on_error="return")
    errors = {worker: error for worker, error in found.items() if isinstance(error, Exception)}
    for worker, error in errors.items():
        raise XSuperResError(
            f"{len(errors)} of {len(found)} workers cannot run this model, {worker} for one: {error}. Install the same "
            "xsuperres, with torch, there as here."
        ) from error


def connected_client() -> Any:
    """Return the client that is connected and can be waited for, None without one."""
    client = _default_client()
    return None if client is None or client.asynchronous or client.status != "running" else client


def _default_client() -> Any:
    """Return the current client, whatever its state, None without one; nothing is imported for it."""
    if "distributed" not in sys.modules:
        return None
    from distributed import default_client

    try:
        return default_client()
    except ValueError:
        return None


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
            _PREPARED[key] = _prepared(known_model(reference.digest) or _read(reference), execution)
            _COUNTS[key] += 1
            _make_room()
        _PREPARED[key] = _PREPARED.pop(key)  # now the last to go
        return _PREPARED[key]


def _prepared(model: SRModel, execution: Execution) -> Prepared:
    try:
        return prepare(model, execution)
    except RuntimeError as error:
        if not is_short_of_memory(error):
            raise
        raise XSuperResError(
            f"The model does not fit into the memory of {execution.device}, of which others may use a part; use "
            "another device, or device='cpu'."
        ) from error


def _make_room() -> None:
    """Drop models, but the newest, while all are more than a process keeps."""
    sizes = {key: bytes_of(prepared) for key, prepared in _PREPARED.items()}
    for key in list(sizes)[:-1]:
        if sum(sizes.values()) <= _ROOM:
            break
        del _PREPARED[key], sizes[key]


def _read(reference: ModelReference) -> SRModel:
    paths = [_COPIES.get(reference.digest), None if reference.path is None else Path(reference.path)]
    there = next((path for path in paths if path is not None and path.exists()), None)
    if there is None:
        raise ModelFileError(
            f"The model {reference.digest[:12]} is neither in this process nor at {reference.path!r}. Keep the model "
            "object alive until the result is computed; on a cluster connect the client before calling downscale, or "
            "share the cache folder (XSUPERRES_CACHE) with the workers."
        )
    try:
        model = load_model(there)
    except ModelFileError as error:
        raise ModelFileError(
            f"The copy {str(there)!r} is damaged; delete this file and downscale again. {error}"
        ) from error
    if model.digest != reference.digest:
        raise ModelFileError(f"{str(there)!r} holds another model; delete this file and downscale again.")
    return remember(model)
