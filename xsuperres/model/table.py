"""The models active in this process, looked up by coarse variable and scale, and all those seen, by digest.

Nothing trained lives on an accessor: xarray drops it with its object.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from numbers import Integral

from xsuperres.errors import ConfigError, NoModelError
from xsuperres.fields.grid import check_scale
from xsuperres.model.artefact import SRModel

__all__ = ["activate", "active_model", "active_models", "choose_model", "deactivate", "known_model", "remember"]

logger = logging.getLogger(__name__)
Name = str | tuple[str, ...] | None
Key = tuple[Name, int]
_ACTIVE: dict[Key, SRModel] = {}
_KNOWN: dict[str, list[weakref.ref[SRModel]]] = {}  # equal models, the latest last
_LATEST: deque[SRModel] = deque(maxlen=8)  # so that a model loaded from a path outlives the call that used it
_LOCK = threading.Lock()


def remember(model: SRModel) -> SRModel:
    """Make `model` known by its digest for as long as it lives, or is among the last few."""
    digest = model.digest
    with _LOCK:
        twins = [ref for ref in _KNOWN.get(digest, []) if ref() not in (None, model)]
        _KNOWN[digest] = [*twins, weakref.ref(model)]
        if all(known is not model for known in _LATEST):
            _LATEST.append(model)
    return model


def known_model(digest: str) -> SRModel | None:
    """Return the model of that digest if it is loaded in this process."""
    with _LOCK:
        living = [model for ref in _KNOWN.get(digest, []) if (model := ref()) is not None]
        if not living:
            _KNOWN.pop(digest, None)
        return living[-1] if living else None


def activate(model: SRModel) -> SRModel:
    """Make `model` the one that ``downscale(scale=...)`` uses for its coarse variable and scale; the last wins.

    Parameters
    ----------
    model : SRModel
        From ``fit`` or `load_model`.

    Returns
    -------
    SRModel
        The same model.
    """
    if not isinstance(model, SRModel):
        raise ConfigError(f"Expected an SRModel, from fit or load_model, got {type(model).__name__}.")
    key = key_of(model.input_names), model.scale
    remember(model)  # before it enters the table: a model that cannot be digested is refused
    with _LOCK:
        replaced = _ACTIVE.get(key)
        _ACTIVE[key] = model
    if replaced is not None and replaced.digest != model.digest:
        logger.info("Model %s for %r at scale %d replaces %s.", model.digest[:8], *key, replaced.digest[:8])
    return model


def active_models() -> dict[Key, SRModel]:
    """Return the active models by (name of the coarse variable, or sorted names of several, and scale)."""
    with _LOCK:
        return dict(_ACTIVE)


def deactivate(name: Name = None, scale: int | None = None) -> None:
    """Forget active models: all, those of a variable, those of a scale, or one.

    Parameters
    ----------
    name : str or tuple of str, optional
        Variable name, or the sorted names of several.
    scale : int, optional
        Scale.
    """
    with _LOCK:
        for key in list(_ACTIVE):
            if name in (None, key[0]) and scale in (None, key[1]):
                del _ACTIVE[key]


def key_of(names: Sequence[object]) -> Name:
    """Return what models are looked up by: the variable's name, or the sorted names of several."""
    told = [None if name is None else str(name) for name in names]
    return told[0] if len(told) == 1 else tuple(sorted(str(name) for name in told))


def active_model(names: Sequence[object], scale: int) -> SRModel:
    """Return the active model for a variable, or for several together, and a scale.

    Raises
    ------
    NoModelError
        That says which models are active and how to get one.
    """
    models = active_models()
    name = key_of(names)
    found = models.get((name, scale))
    if found is None:
        have = ", ".join(f"{n!r} at scale {s}" for n, s in models) or "none"
        raise NoModelError(
            f"No model is active for {name!r} at scale {scale} (active: {have}). Train one with "
            f".sr.fit(scale={scale}), or load one with xsuperres.load_model(path) and pass it, .sr.downscale(model), "
            "or make it the active one: xsuperres.activate(model)."
        )
    return found


def choose_model(model: SRModel | str | os.PathLike[str] | None, scale: object, names: Sequence[object]) -> SRModel:
    """Return a model: itself, the one in the file of that path, or the active one for these variables and `scale`.

    Raises
    ------
    ConfigError, GridError, ModelFileError, NoModelError
        If it is none of these, `scale` is not its scale, the file is none of a model, or no model is active.
    """
    from xsuperres.model.file import load_model

    wanted = None if scale is None else check_scale(scale)
    if model is None:
        if wanted is None:
            raise ConfigError("Pass a model, or the scale of the active one: .sr.downscale(scale=4).")
        return active_model(names, wanted)
    chosen = load_model(model) if isinstance(model, (str, os.PathLike)) else model
    if not isinstance(chosen, SRModel):
        number = isinstance(chosen, Integral) and not isinstance(chosen, bool)
        meant = f" ({chosen!r}); did you mean scale={chosen}?" if number else "."
        raise ConfigError(f"model must be an SRModel or the path of one, got {type(chosen).__name__}{meant}")
    if wanted not in (None, chosen.scale):
        raise ConfigError(f"scale={scale} differs from the model's scale of {chosen.scale}; leave scale out.")
    return chosen
