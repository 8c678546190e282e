"""The ``.sr`` accessors; importing this registers them."""

from xsuperres.accessor.registered import DatasetSuperResolutionAccessor, SuperResolutionAccessor

__all__ = ["DatasetSuperResolutionAccessor", "SuperResolutionAccessor"]
