"""A plugin of distributed workers: the copy of a model that a client sends once, to those that join later too.

Imported only where distributed is in use, by the client.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin

__all__ = ["model_copy"]


def model_copy(digest: str, content: bytes) -> WorkerPlugin:
    """Return a plugin that writes a model into the worker's own folder, where its process finds it by digest.

    Its class is defined here, so that it travels by value: a worker that lacks this package would else not start, and
    its cluster with it.

    Parameters
    ----------
    digest : str
        Of the model.
    content : bytes
        Of the model file.
    """

    class ModelCopy(WorkerPlugin):
        idempotent = True

        def __init__(self) -> None:
            self.content = content

        def setup(self, worker: Any) -> None:
            path = Path(worker.local_directory) / f"{digest}.safetensors"
            beside = path.with_suffix(f".{os.getpid()}")
            beside.write_bytes(self.content)
            beside.replace(path)
            self.content = b""  # the file has it
            with contextlib.suppress(ImportError):  # a task that comes here says what is missing
                from xsuperres.inference.workers import copied

                copied(digest, path)

    return ModelCopy()
