"""Whether coarse data lie in the range of the training: who counts, who judges, and who is told.

Numpy in. In-memory data are judged at once. Of lazy data every task counts its own cells, each block once however often
it is computed. The process that asked for the result judges: against all cells of the result, of which those to come
count as inside, so that neither order nor chunks matter. It hears of blocks that the workers of its cluster compute;
other processes, which nobody hears, judge by their own share.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import uuid
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from xsuperres.errors import DataError, XSuperResWarning, warn
from xsuperres.fields.grid import Location
from xsuperres.inference.tally import Label, Limits, Tally, tallied
from xsuperres.inference.workers import connected_client
from xsuperres.model.artefact import SRModel
from xsuperres.tiles import Window

__all__ = ["CHECKS", "CheckRange", "Guard", "check_now", "go_on", "so_far", "warn_everywhere"]

CheckRange = Literal["warn", "raise", "ignore"]
CHECKS = ("warn", "raise", "ignore")

_TOPIC = "xsuperres-range"  # of the events by which workers tell a client what they counted
_STOPS = "xsuperres-range-stop"  # of those by which the client stops them
_STRICT = "check_range='warn' or 'ignore'."
_KEPT = 256  # requests per process; the one not seen for longest goes first
_SO_FAR: dict[str, _Progress] = {}
_LISTENING: weakref.WeakSet[Any] = weakref.WeakSet()  # clients
_LOCK = threading.Lock()


@dataclass(eq=False)
class _Progress:
    """What a process knows of a result.

    `shape` is that of the coarse data (..., y, x); `caller` is the line of this process that asked for the result, None
    where another process did; `told` says whether the verdict was told. A bit per field and chunk of its cells says
    which blocks have been counted.
    """

    shape: tuple[int, ...]
    labels: tuple[Label, ...]
    share: float
    caller: tuple[str, int] | None = None
    process: int = field(default_factory=os.getpid)
    tally: Tally | None = None
    told: bool = False
    counted: dict[tuple[int, ...], bytearray] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether this process hears of all blocks."""
        return self.caller is not None

    @property
    def size(self) -> int:
        """How many cells there are."""
        return math.prod(self.shape)

    @property
    def judged(self) -> int:
        """How many cells it is judged by: all; its own, of a field at least, where it does not hear of the others."""
        seen = 0 if self.tally is None else int(self.tally.seen.max())
        return self.size if self.whole else max(seen, math.prod(self.shape[-2:]))

    def has(self, chunks: Sequence[int]) -> bool:
        """Return whether a block has been counted."""
        byte, bit = divmod(self._number(chunks), 8)
        bits = self.counted.get(tuple(chunks[-2:]))
        return bits is not None and bool(bits[byte] >> bit & 1)

    def add(self, chunks: Sequence[int], tally: Tally) -> None:
        """Count a block that has not been."""
        byte, bit = divmod(self._number(chunks), 8)
        bits = self.counted.setdefault(tuple(chunks[-2:]), bytearray(-(-math.prod(self.shape[:-2]) // 8)))
        bits[byte] |= 1 << bit
        self.tally = tally if self.tally is None else self.tally + tally

    def _number(self, chunks: Sequence[int]) -> int:
        number = 0
        for chunk, size in zip(chunks[:-2], self.shape[:-2], strict=True):
            number = number * size + chunk
        return number

    def verdict(self, of: int) -> str | None:
        """Return what is to be said if too many of so many cells lie outside, None for nothing."""
        if self.tally is None:
            return None
        alarming = self.tally.alarming(self.share, of)
        if not len(alarming):
            return None
        partly = self.tally.seen.max() < self.size
        return _said(self.labels, self.tally, alarming, of=" computed so far" if partly else "")

    def to_tell(self) -> str | None:
        """Return the verdict the first time that there is one."""
        said = None if self.told else self.verdict(self.judged)
        self.told = self.told or said is not None
        return said


@dataclass(frozen=True)
class Guard:
    """Watches the blocks of one lazy result; small, picklable.

    `shape` is that of the coarse data (..., y, x), `request` tells calls of `downscale` apart, `heard` says whether
    their process hears of what the workers of a cluster compute. Keys depend on neither of the latter two.
    """

    way: CheckRange
    shape: tuple[int, ...]
    request: str
    heard: bool

    @classmethod
    def of(cls, way: CheckRange, model: SRModel, shape: tuple[int, ...], request: str | None = None) -> Guard | None:
        """Return the guard of a result made from coarse data of a shape (..., y, x); None to ignore."""
        if way == "ignore":
            return None
        limits, frame = Limits.of(model), sys._getframe(3)  # of who called the accessor
        request = request or uuid.uuid4().hex
        with _LOCK:
            _keep(request, _Progress(shape, limits.labels, limits.share, (frame.f_code.co_filename, frame.f_lineno)))
        return cls(way, shape, request, _listen())

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return type(self).__name__, self.way, self.shape

    def watch(self, limits: Limits, block: np.ndarray, parts: Sequence[Window], location: Location) -> None:
        """Count the own cells of a block (..., variables, y, x); `location` has the model's cells of all of them.

        Raises
        ------
        DataError
            If it is to raise, and too many cells of the result lie outside.
        """
        lead = parts[: block.ndim - 3]
        chunks = [part.chunk for part in (*lead, *parts[-2:])]
        with _LOCK:
            new = not self._progress(limits).has(chunks)
        tally = None
        if new:
            y, x = (part.own for part in parts[-2:])
            own = block[(*(part.own for part in lead), slice(None), y, x)]
            tally = tallied(limits.planes, own, Location(location.rows[y], location.columns[x])) if own.size else None
        with _LOCK:
            progress = self._progress(limits)
            if tally is not None and not progress.has(chunks):
                progress.add(chunks, tally)
        worker = _worker() if self.heard and not progress.whole else None
        if worker is None:
            self._judge(progress)
        else:
            self._report(progress, worker, chunks, tally)

    def _judge(self, progress: _Progress) -> None:
        """Say what there is to say of a result, or of a share of it that nobody else hears of."""
        with _LOCK:
            said = progress.verdict(progress.judged) if self.way == "raise" else progress.to_tell()
        if said is not None and self.way == "raise":
            raise DataError(f"{said}{_STRICT}")
        _tell(said, progress)

    def _report(self, progress: _Progress, worker: Any, chunks: list[int], tally: Tally | None) -> None:
        """Have the client judge; stop if it found too many, or this process alone has.

        Where the whole has too many, so has the share of at least one process: only there the client is asked.
        """
        strict = self.way == "raise"
        with _LOCK:
            alone, share = (progress.verdict(of) if strict else None for of in (progress.size, progress.judged))
        if alone is None and tally is not None:
            worker.log_event(
                _TOPIC, {"request": self.request, "chunks": chunks, "tally": tally.numbers, "way": self.way}
            )
        said = _stopped(self.request) if alone is None and share is not None else alone
        if said is not None:
            raise DataError(f"{said}{_STRICT}")

    def _progress(self, limits: Limits) -> _Progress:
        """Return what this process knows of the result; a copy that came by a fork knows nothing."""
        found = _SO_FAR.get(self.request)
        if found is None or found.process != os.getpid():
            found = _Progress(self.shape, limits.labels, limits.share)
        return _keep(self.request, found)


def _keep(request: str, progress: _Progress) -> _Progress:
    """Keep what is known of a request, now the last to be forgotten."""
    _SO_FAR.pop(request, None)
    _SO_FAR[request] = progress
    while len(_SO_FAR) > _KEPT:
        del _SO_FAR[next(iter(_SO_FAR))]
    return progress


def so_far(request: str) -> list[list[float | None]] | None:
    """Return what this process has counted of a request, as plain numbers."""
    with _LOCK:
        progress = _SO_FAR.get(request)
        return None if progress is None or progress.tally is None else progress.tally.numbers


def go_on(request: str, numbers: Sequence[Sequence[float | None]] | None) -> None:
    """Begin a request with what another process had counted of the same result, in blocks that are not to come."""
    with _LOCK:
        if numbers is not None and request in _SO_FAR:
            _SO_FAR[request].tally = Tally.of(numbers)


def check_now(way: CheckRange, model: SRModel, values: np.ndarray, location: Location) -> None:
    """Judge all cells (..., variables, y, x) at `location` of the model's coarse grid.

    Raises
    ------
    DataError
        If it is to raise, and too many lie outside.
    """
    if way == "ignore":
        return
    limits = Limits.of(model)
    tally = tallied(limits.planes, values, location)
    alarming = tally.alarming(limits.share, int(tally.seen.max()))
    if not len(alarming):
        return
    said = _said(limits.labels, tally, alarming)
    if way == "raise":
        raise DataError(f"{said}{_STRICT}")
    warn(f"{said}check_range='ignore'.")


def _said(labels: Sequence[Label], tally: Tally, alarming: np.ndarray, *, of: str = "") -> str:
    """Say which variables, how many of their cells, what the range was and is, and begin to say what to do."""
    told = []
    for index in alarming:
        label, now = labels[index], (tally.lowest[index], tally.highest[index])
        above, below = (100 * count[index] / tally.known[index] for count in (tally.above, tally.below))
        told.append(
            f"{label.name!r}: {100 * tally.share[index]:.3g} % of the coarse values{of} lie outside the "
            f"range of their {label.where} in training ({above:.3g} % above, {below:.3g} % below); together they are "
            f"{now[0]:.4g} to {now[1]:.4g}{label.units}, in training {label.span[0]:.4g} to "
            f"{label.span[1]:.4g}{label.units}."
        )
    return f"{' '.join(told)} The network extrapolates there; train on such data too, or pass "


def _tell(said: str | None, progress: _Progress) -> None:
    """Warn: of the line that asked for the result, whatever Python has shown before, or wherever someone listens."""
    if said is None:
        return
    message = f"{said}check_range='ignore'."
    if progress.caller is None:
        warn_everywhere(message, stacklevel=3)
    else:
        warnings.warn_explicit(message, XSuperResWarning, *progress.caller, registry={})


def _listen() -> bool:
    """Have the connected client, if there is one, hear what its workers count."""
    client = connected_client()
    if client is None:
        return False
    if client not in _LISTENING:
        client.subscribe_topic(_TOPIC, partial(_hear, weakref.ref(client)))
        _LISTENING.add(client)
    return True


async def _hear(client: Any, event: tuple[float, dict[str, Any]]) -> None:
    """Count a block that a worker tells of, once however often it was computed; tell what comes of it."""
    _, report = event
    with _LOCK:
        progress = _SO_FAR.get(report["request"])
        if progress is None or progress.has(report["chunks"]):
            return
        progress.add(report["chunks"], Tally.of(report["tally"]))
        said = progress.to_tell()
    if said is not None and report["way"] == "raise":  # first, for a warning may be made an error
        await client().scheduler.log_event(topic=_STOPS, msg={"request": report["request"], "said": said})
    _tell(said, progress)


def _stopped(request: str) -> str | None:
    """Return what the client said of a request that it stopped."""
    from distributed import get_client

    stops = [stop for _, stop in get_client().get_events(_STOPS)]
    return next((stop["said"] for stop in stops if stop["request"] == request), None)


def _worker() -> Any:
    """Return the distributed worker whose task this is, None elsewhere."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


def warn_everywhere(message: str, stacklevel: int) -> None:
    """Warn here, and in a task of a distributed worker its clients too."""
    if "distributed" in sys.modules:
        import distributed

        distributed.warn(message, XSuperResWarning, stacklevel)
    else:
        warnings.warn(message, XSuperResWarning, stacklevel)
