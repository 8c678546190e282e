"""Devices: how values get to one, what runs there at a time and in which precision, and how results come back.

Torch and numpy only. The layer is thin, so that a fake device in the tests stands for a GPU: all that differs between
devices is here.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from xsuperres.conditions import flag
from xsuperres.config import check_choice
from xsuperres.errors import ConfigError
from xsuperres.inference.allocator import keep_freed_memory
from xsuperres.inference.float32 import products

__all__ = [
    "HALF",
    "ON_CPU",
    "PRECISIONS",
    "Device",
    "Downloads",
    "Execution",
    "check_device",
    "choose_device",
    "device_of",
    "is_short_of_memory",
]

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SLOTS: dict[int, threading.BoundedSemaphore] = {}
_LOCK = threading.Lock()
_POLL = 0.002  # seconds; a block takes tens of milliseconds
_AMPERE = (8, 0)  # the first with bfloat16 and TF32
_SHORT = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")  # how CUDA, cuDNN and cuBLAS say it
_RANK: dict[int, tuple[int, FileLock]] = {}


def check_device(device: object) -> None:
    """Refuse what cannot be a device on any machine."""
    try:
        kind = torch.device(device).type if isinstance(device, str) and device != "auto" else "cpu"
    except RuntimeError:
        kind = ""
    if not isinstance(device, str) or kind not in ("cpu", "cuda"):
        raise ConfigError(f"device must be 'auto', 'cpu', 'cuda' or like 'cuda:0', got {device!r}.")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a network is run: where, in which precision, compiled or not.

    `device` "auto" and "cuda" are resolved by the process that runs a task, which may see other devices than the one
    that made it.
    """

    device: str = "auto"
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        check_device(self.device)
        check_choice("precision", self.precision, PRECISIONS)
        flag(self, "compile")

    def chosen(self) -> Execution:
        """Return the execution on the device of this process.

        Raises
        ------
        ConfigError
            If the device is not there, or does not have the precision.
        """
        name = choose_device(self.device)
        device_of(name).check(self.precision)
        return Execution(device=name, precision=self.precision, compile=self.compile)


ON_CPU = Execution(device="cpu")


def is_short_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch says that a GPU's memory did not do; its libraries have words of their own."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in _SHORT)


def choose_device(device: str) -> str:
    """Return the device that "auto", or "cuda", means in this process, or `device` if it is there.

    Of several GPUs each process of a host takes one, by its rank among those that run there; dask-cuda has put the
    worker's own first.

    Raises
    ------
    ConfigError
        If torch does not see it.
    """
    check_device(device)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    asked = torch.device("cpu" if device == "auto" and not count else device.replace("auto", "cuda"))
    if asked.type == "cpu":
        return "cpu"
    index = asked.index
    if (index or 0) >= count:
        raise ConfigError(
            f"device={device!r} was asked for, but torch sees {count} GPU(s); use device='cpu' or 'auto'."
        )
    if index is None:
        index = 0 if count == 1 or _under_dask_cuda() else _rank() % count
    return f"cuda:{index}"


def _under_dask_cuda() -> bool:
    """Return whether this is the process of a worker of dask-cuda, which knows its own by their plugins."""
    if "dask_cuda" not in sys.modules:  # that may be so in other processes too
        return False
    from distributed import get_worker

    try:
        plugins = get_worker().plugins.values()
    except ValueError:
        return False
    return any(type(plugin).__module__.split(".")[0] == "dask_cuda" for plugin in plugins)


def _rank() -> int:
    """Return the rank of this process among those of this host that asked: the first that no living one holds."""
    with _LOCK:
        if os.getpid() not in _RANK:
            folder = _shared_folder()
            rank = 0
            while not _taken(lock := FileLock(folder / f"rank-{rank}.lock", thread_local=False)):
                rank += 1
            _RANK[os.getpid()] = rank, lock  # kept, and so held, for the life of the process
        return _RANK[os.getpid()][0]


def _taken(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _shared_folder() -> Path:
    """Return a folder that all processes of this user on this host see."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"xsuperres-{user}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def device_of(name: str) -> Device:
    """Return the device called `name`, as `choose_device` gives it."""
    return Device(name) if torch.device(name).type == "cpu" else CudaDevice(name)


class Device:
    """The CPU: values are there already, and so are results.

    Parameters
    ----------
    name : str
        As torch calls it.
    """

    floats = 2**20  # of the widest activation: what stays in the cache between layers runs twice as fast

    def __init__(self, name: str) -> None:
        self.name, self.torch = name, torch.device(name)

    @property
    def precisions(self) -> tuple[str, ...]:
        """What it computes in, faster than in float32."""
        return "fp32", "bf16"

    def check(self, precision: str) -> None:
        """Refuse a precision that the device does not have."""
        if precision not in self.precisions:
            raise ConfigError(
                f"precision={precision!r} is not there on {self.name!r}, which has {', '.join(self.precisions)}."
            )

    def gate(self) -> AbstractContextManager[Any]:
        """Return a gate for blocks of this process: cores // torch threads at a time, at least one."""
        with _LOCK:
            process = os.getpid()
            if process not in _SLOTS:
                keep_freed_memory()
                slots = max(1, (os.cpu_count() or 1) // torch.get_num_threads())
                _SLOTS[process] = threading.BoundedSemaphore(slots)
            return _SLOTS[process]

    @contextmanager
    def arithmetic(self, precision: str) -> Iterator[None]:
        """Run convolutions and products in `precision`; float32 means float32."""
        with ExitStack() as stack:
            if precision in HALF:
                stack.enter_context(torch.autocast(self.torch.type, dtype=HALF[precision]))
            yield

    def upload(self, values: np.ndarray) -> Tensor:
        """Return values as a tensor on the device."""
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))  # torch warns of what cannot be written

    def downloads(self) -> Downloads:
        """Return what brings a block's results back."""
        return Downloads()

    def release(self) -> None:
        """Give memory back that nothing uses, after there was too little."""


class Downloads:
    """Brings results of one block back, piece by piece; `finish` waits for the last."""

    def put(self, result: Tensor, place: np.ndarray) -> None:
        """Copy a result to its place, now or until `finish`."""
        place[...] = result.numpy()

    def finish(self) -> None:
        """Wait until all results are in their places."""


class CudaDevice(Device):
    """A GPU: one block at a time, of all processes of this host; copies go on beside the arithmetic."""

    floats = 2**27

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.turn = threading.Lock()

    @property
    def precisions(self) -> tuple[str, ...]:
        if torch.cuda.get_device_capability(self.torch) < _AMPERE:
            return "fp32", "fp16"
        return PRECISIONS

    @contextmanager
    def gate(self) -> Iterator[None]:
        identity = getattr(torch.cuda.get_device_properties(self.torch), "uuid", self.name)
        with self.turn, FileLock(_shared_folder() / f"gpu-{identity}.lock").acquire(poll_interval=_POLL):
            yield

    @contextmanager
    def arithmetic(self, precision: str) -> Iterator[None]:
        with products(tf32=precision == "tf32"), super().arithmetic(precision):
            yield

    def upload(self, values: np.ndarray) -> Tensor:
        return super().upload(values).pin_memory().to(self.torch, non_blocking=True)

    def downloads(self) -> Downloads:
        return _Overlapped(self.torch)

    def release(self) -> None:
        torch.cuda.empty_cache()


class _Overlapped(Downloads):
    """Copies a result to pinned memory on a stream of its own, and to its place while the next one is computed."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pending: tuple[Tensor, np.ndarray, torch.cuda.Event] | None = None

    def put(self, result: Tensor, place: np.ndarray) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(result.device))
        with torch.cuda.stream(self.stream):
            staged = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            staged.copy_(result, non_blocking=True)
            result.record_stream(self.stream)
            done = torch.cuda.Event()
            done.record(self.stream)
        self.finish()
        self.pending = staged, place, done

    def finish(self) -> None:
        if self.pending is not None:
            staged, place, done = self.pending
            done.synchronize()
            place[...] = staged.numpy()
            self.pending = None
