"""Deep-learning super-resolution (statistical downscaling) of climate data inside xarray.

Importing this package registers the ``.sr`` accessor and loads xarray and numpy only; torch, dask and the rest are
imported when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from xsuperres import accessor as _accessor  # noqa: F401  (registers .sr)
from xsuperres._version import __version__

_HOMES = {
    "ACTIVATIONS": "nn.layers",
    "ATTENTION": "nn.layers",
    "BACKBONES": "nn.backbones",
    "DISCRIMINATORS": "nn.discriminator",
    "DROPOUT": "nn.layers",
    "LOSSES": "nn.losses",
    "NORMALIZATION": "nn.layers",
    "UPSAMPLERS": "nn.upsamplers",
    "AdversarialConfig": "config",
    "DataConfig": "config",
    "NetworkConfig": "config",
    "OptimizationConfig": "config",
    "SRModel": "model.artefact",
    "SamplingConfig": "config",
    "activate": "model.table",
    "active_models": "model.table",
    "deactivate": "model.table",
    "errors": "",
    "load_model": "model.file",
    "plot_history": "verify.plots",
    "plot_maps": "verify.plots",
    "score_table": "verify.score_table",
    "set_options": "options",
    "testing": "",
    "tutorial": "",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'xsuperres' has no attribute {name!r}")
    home = _HOMES[name]
    if not home:
        return importlib.import_module(f"xsuperres.{name}")
    return getattr(importlib.import_module(f"xsuperres.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
