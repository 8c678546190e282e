"""A plugin of distributed workers: the copy of a model that a client sends once, to those that join later too.

Imported only where distributed is in use.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin

from xsuperres.inference.workers import copied

__all__ = ["ModelCopy"]


class ModelCopy(WorkerPlugin):
    """Writes a model into the worker's own folder, where its process finds it by digest.

    Parameters
    ----------
    digest : str
        Of the model.
    content : bytes
        Of the model file.
    """

    idempotent = True

    def __init__(self, digest: str, content: bytes) -> None:
        self.name = f"xsuperres-model-{digest}"
        self.digest, self.content = digest, content

    def setup(self, worker: Any) -> None:
        """Write the file, and tell the worker's process of it."""
        path = Path(worker.local_directory) / f"{self.digest}.safetensors"
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_bytes(self.content)
        beside.replace(path)
        copied(self.digest, path)
        self.content = b""  # the file has it
