"""Which target belongs to which coarse field of explicit pairs: by the labels of their dims.

Fields in and out; lazy. Times are joined in `xsuperres.fields.pairs`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd

from xsuperres.errors import DataError
from xsuperres.fields.field import Field

__all__ = ["check_unique", "in_step", "matched"]


def matched(coarse: Field, fine: Sequence[Field]) -> list[Field]:
    """Return targets with members, and whatever else is neither horizontal nor time, in the order of a coarse field.

    A target may lack such dims, and is then the truth of each; not times.

    Parameters
    ----------
    coarse : Field
        One of the coarse fields, which share their dims and coordinates.
    fine : sequence of Field
        The targets, which share theirs.

    Raises
    ------
    DataError
        If a target has a dim that the coarse field lacks, one has times or labels and the other has none, or labels
        differ or come twice.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> field = xsr.testing.toy_field(time=2, y=4, x=4).expand_dims(member=[0, 1])
    >>> matched(Field(field), [Field(field.isel(member=[1, 0]))])[0].array.member.values.tolist()
    [0, 1]
    """
    outer, inner = coarse.axes, fine[0].axes
    joined_later = inner.time if outer.time is not None else None
    ours = coarse.lead
    theirs = [dim for dim in fine[0].lead if dim != joined_later]
    extra = [str(dim) for dim in theirs if dim not in ours]
    if extra:
        raise DataError(
            f"The target has dims {extra} that the coarse data lack, which have {list(map(str, ours))}; give both the "
            "same, or select or average the target's."
        )
    if outer.time is not None and inner.time is None:
        raise DataError(
            f"The coarse data have times along {outer.time!r}, the target has none; pairs are of the same times."
        )
    targets = list(fine)
    for dim in theirs:
        targets = _along(dim, coarse, targets)
    return targets


def _along(dim: Hashable, coarse: Field, fine: list[Field]) -> list[Field]:
    """Return the targets in the order of the coarse labels along `dim`."""
    ours, theirs = coarse.array.indexes.get(dim), fine[0].array.indexes.get(dim)
    if ours is None or theirs is None:
        return in_step(coarse, fine, dim, dim)
    check_unique(ours, theirs, dim)
    where = theirs.get_indexer(ours)
    if len(ours) != len(theirs) or (where < 0).any():
        raise DataError(
            f"The target has other values of {dim!r}: expected {ours.tolist()}, got {theirs.tolist()}; select the same "
            "ones from both."
        )
    if np.array_equal(where, np.arange(len(ours))):
        return fine
    return [field.with_array(field.array.isel({dim: where})) for field in fine]


def check_unique(coarse: pd.Index, fine: pd.Index, dim: Hashable) -> None:
    """Refuse labels along `dim` that come twice: what belongs to them is not known."""
    for which, index in (("coarse data repeat", coarse), ("target repeats", fine)):
        if not index.is_unique:
            raise DataError(
                f"The {which} values of {dim!r}, the first {index[index.duplicated()][0]}; drop them: "
                f".drop_duplicates({str(dim)!r})."
            )


def in_step(coarse: Field, fine: list[Field], outer: Hashable, inner: Hashable) -> list[Field]:
    """Return targets whose steps along `inner` are, one by one, those of a coarse field along `outer`, called so too.

    Raises
    ------
    DataError
        If only one of the two has labels there, or their numbers differ.
    """
    labelled = outer in coarse.array.indexes, inner in fine[0].array.indexes
    if any(labelled):
        have, lack = ("coarse data have", "target has") if labelled[0] else ("target has", "coarse data have")
        raise DataError(
            f"Along {outer!r} the {have} coordinates and the {lack} none; give both, or, if they are of the same steps "
            f"in the same order, drop them: .drop_vars({str(outer)!r})."
        )
    sizes = coarse.array.sizes[outer], fine[0].array.sizes[inner]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"The coarse data have {sizes[0]} steps along {outer!r}, the target {sizes[1]}, and no coordinates tell "
            "which belong together; give both."
        )
    return fine if inner == outer else [field.renamed(inner, outer) for field in fine]
