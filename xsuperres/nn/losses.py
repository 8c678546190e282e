"""Losses: what training makes small, one scalar for a batch of fields.

Torch only, no xarray. The contract: ``loss(prediction, target, weight)`` with (b, c, y, x) tensors, `weight`
broadcastable to them (cell areas, 0 where the target is missing), gives a scalar: 0 for equal fields, and never less.
Only ratios of weights count; a cell without weight has no influence, on the value or on a gradient, whatever either
field holds there. To add one, decorate a function with ``@LOSSES.add("name")``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from xsuperres.errors import ConfigError
from xsuperres.registry import Registry

__all__ = ["LOSSES", "Loss", "build_loss", "loss_names", "weighted_mean"]

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]

LOSSES: Registry[Loss] = Registry("loss")

_WINDOW, _SIGMA = 11, 1.5  # cells; with the two constants below, Wang et al. (2004)
_LUMINANCE, _STRUCTURE = 0.01**2, 0.03**2  # of a field whose range is 1
_SCALE_POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # from fine to coarse, Wang et al. (2003)
_FLOOR = 1 / 8  # of similarities that are raised to a power


def build_loss(given: str | Mapping[str, float]) -> Loss:
    """Return the loss of that name, or the weighted sum of several.

    Parameters
    ----------
    given : str or mapping of str to float
        ``"mae"``, or ``{"mae": 0.8, "dssim": 0.2}``: 0.8 times the one plus 0.2 times the other.

    Raises
    ------
    UnknownNameError
        No loss has that name.
    ConfigError
        `given` is neither, is empty, names a loss twice, or has a weight that is no positive finite number.

    Examples
    --------
    >>> field = torch.zeros(1, 1, 4, 4)
    >>> loss = build_loss({"mae": 0.5, "mse": 2})
    >>> loss(field + 3, field, torch.ones(1, 1, 4, 4))
    tensor(19.5000)
    """
    parts = [(LOSSES.get(name), share) for name, share in loss_names(given).items()]

    def loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return torch.stack([share * part(prediction, target, weight) for part, share in parts]).sum()

    return loss


def loss_names(given: str | Mapping[str, float]) -> dict[str, float]:
    """Return the registered names in `given`, with their weights: plain values that a file can hold.

    Takes and raises what `build_loss` does.

    Examples
    --------
    >>> loss_names("mse"), loss_names({"mae": 1, "dssim": 0.5})
    ({'mse': 1.0}, {'mae': 1.0, 'dssim': 0.5})
    """
    parts = {given: 1.0} if isinstance(given, str) else given
    if not isinstance(parts, Mapping) or not parts:
        raise ConfigError(
            "A loss must be a name, or a dict of at least one name and its weight such as {'mae': 0.8, 'dssim': 0.2}, "
            f"got {given!r}; choose from {', '.join(map(repr, LOSSES))}."
        )
    names: dict[str, float] = {}
    for name, share in parts.items():
        canonical = LOSSES.canonical(name)
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share < math.inf:
            raise ConfigError(
                f"The weight of the loss {name!r} must be a positive finite number, got {share!r}; "
                "leave out a loss that is not to count."
            )
        if canonical in names:
            raise ConfigError(f"Each loss must be named once, got {canonical!r} again as {name!r}; add up the weights.")
        names[canonical] = float(share)
    return names


def weighted_mean(error: Tensor, weight: Tensor, *, planes: bool = False) -> Tensor:
    """Return the mean of `error` under `weight`; 0 where every weight is 0.

    Parameters
    ----------
    error : Tensor (b, c, y, x)
        Of any shape if not `planes`.
    weight : Tensor
        Not negative, broadcastable to `error`.
    planes : bool
        Return the mean of every plane, (b, c, 1, 1), instead of a scalar.
    """
    weight = weight.expand_as(error)
    dims = (-2, -1) if planes else tuple(range(error.ndim))
    return (error * weight).sum(dims, keepdim=planes) / _positive(weight.sum(dims, keepdim=planes))


@LOSSES.add("mse")
def mean_squared_error(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of squared errors."""
    prediction, target, weight = _hide_missing(prediction, target, weight)
    return weighted_mean((prediction - target).square(), weight)


@LOSSES.add("mae")
def mean_absolute_error(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of absolute errors."""
    prediction, target, weight = _hide_missing(prediction, target, weight)
    return weighted_mean((prediction - target).abs(), weight)


@LOSSES.add("huber")
def huber(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of Huber's error: squared up to 1 (scaled units), absolute beyond."""
    prediction, target, weight = _hide_missing(prediction, target, weight)
    return weighted_mean(F.huber_loss(prediction, target, reduction="none"), weight)


@LOSSES.add("gradient")
def gradient_difference(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of absolute errors of the differences between neighbours along y and along x.

    A pair of neighbours weighs what the lighter of the two does, so one with a missing cell counts for nothing. The
    units are those of the field, per cell. A constant bias costs nothing: use it in a sum, beside a loss that sees one.

    References
    ----------
    Mathieu, Couprie and LeCun (2016), "Deep multi-scale video prediction beyond mean square error": the gradient
    difference loss with alpha = 1, but of signed differences, as a slope the wrong way is an error too.
    """
    prediction, target, weight = _hide_missing(prediction, target, weight)
    error = prediction - target
    slopes, weights = [], []
    for dim in (-2, -1):
        last = weight.shape[dim] - 1
        slopes.append(error.diff(dim=dim).abs().flatten())
        weights.append(torch.minimum(weight.narrow(dim, 0, last), weight.narrow(dim, 1, last)).flatten())
    return weighted_mean(torch.cat(slopes), torch.cat(weights))


@LOSSES.add("spectral")
def spectral_amplitude(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean absolute error of the amplitude spectrum, whatever the phases.

    The amplitude at a wavenumber is the root mean square over the modes of a plane whose wavenumber rounds to it, in
    any direction. A smoothed field pays for the small scales it lacks; one that has them in the wrong place does not,
    so the loss does not reward smoothing what cannot be predicted. The mean is over all modes. Amplitudes are not
    squared, so that the k^-3 spectra of large-scale flow, whose variance is nearly all in the longest waves, count
    alike in every octave. The units are those of the field; a constant bias shows in the longest waves only.

    Notes
    -----
    Both fields are taken as departures from the target's mean and multiplied by the root of their weights, so that the
    squared amplitudes add up to the weighted variance (Parseval) and a missing cell contributes nothing. The weights
    include a Hann taper: the edges of a patch do not match, and the jump would put the large scales' variance into the
    small ones, where it hides what is missing. Cells at the border therefore count for little here.

    References
    ----------
    Subich et al. (2025), "Fixing the double penalty in data-driven weather forecasting through a modified spherical
    harmonic loss function": the error of amplitudes, apart from that of phases.
    """
    prediction, target, weight = _hide_missing(prediction, target, weight)
    rows, columns = (_hann(n, target) for n in target.shape[-2:])
    share = weight * rows[:, None] * columns
    share = share / _positive(share.sum((-2, -1), keepdim=True))
    mean = weighted_mean(target, share, planes=True)
    shells, twins = _shells(target)
    count = _shell_sums(twins, shells)
    powers = (_power((field - mean) * share.sqrt()) * twins for field in (prediction, target))
    # Not the root of 0: its slope is infinite, and times the 0 behind it no number.
    predicted, wanted = (_positive(_shell_sums(power, shells) / _positive(count)).sqrt() for power in powers)
    return weighted_mean((predicted - wanted).abs(), weight.sum((-2, -1))[..., None] * count)  # (b, c, shell)


@LOSSES.add("dssim")
def structural_dissimilarity(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of (1 - SSIM) / 2, structural dissimilarity in a Gaussian window of 11 cells; 0 to 1.

    The windows end at missing cells and at the border (so they shrink to a small patch): statistics are over valid
    cells only. The dynamic range is that of the valid targets of the batch, per channel; 1 where the target is
    constant. SSIM is made for intensities, which are not negative and have a meaningful 0, so values count from the
    smallest of either field: any units and offset will do, both fields may be shifted and scaled alike, and a bias of
    either sign costs the more the larger it is.

    References
    ----------
    Wang, Bovik, Sheikh and Simoncelli (2004), "Image quality assessment: from error visibility to structural
    similarity", eq. 13.
    """
    prediction, target, weight = _normalised(prediction, target, weight)
    luminance, structure = _dissimilarities(prediction, target, weight)
    # (1 - luminance)(1 - structure) subtracted from 1, without the cancellation of nearly equal fields.
    return weighted_mean((luminance + structure - luminance * structure) / 2, weight)


@LOSSES.add("msdssim")
def multiscale_dissimilarity(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return (1 - MS-SSIM) / 2, the mean over planes of the structural dissimilarity at up to 5 scales; 0 to 1/2.

    Each scale is the area-weighted mean of 2 x 2 valid cells of the one before; a scale counts while the patch is at
    least one window (11 cells) wide there, and the first always does: 176 cells or more give all 5 scales, 64 give 3.
    The powers of those that count are scaled to add up to 1. A similarity may be negative and have no power then:
    below 1/8 its logarithm follows the tangent, which keeps the gradient finite, and alive where cutting would end it.
    Invariances and dynamic range as in `structural_dissimilarity`; a bias is seen at the coarsest scale.

    References
    ----------
    Wang, Simoncelli and Bovik (2003), "Multiscale structural similarity for image quality assessment", eq. 7.
    """
    prediction, target, weight = _normalised(prediction, target, weight)
    planes = weight.sum((-2, -1), keepdim=True)
    side = min(target.shape[-2:])
    powers = [power for scale, power in enumerate(_SCALE_POWERS) if scale == 0 or side >= _WINDOW << scale]
    log_similarity = torch.zeros_like(planes)
    for scale, power in enumerate(powers):
        if scale > 0:
            prediction, target, weight = _halved(prediction, target, weight)
        means = [weighted_mean(part, weight, planes=True) for part in _dissimilarities(prediction, target, weight)]
        counted = means if scale == len(powers) - 1 else means[1:]  # luminance at the coarsest scale only
        for mean in counted:
            log_similarity = log_similarity + power / sum(powers) * _log_similarity(mean)
    return weighted_mean(-torch.expm1(log_similarity) / 2, planes)


def _positive(total: Tensor) -> Tensor:
    """Return a divisor: `total`, which is not negative, with what is 0 made tiny, so that 0 / 0 is 0."""
    return total.clamp_min(torch.finfo(total.dtype).tiny)


def _hide_missing(prediction: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return both fields with 0 where there is no weight, and the weight of every cell (b, c, y, x)."""
    weight = weight.expand_as(target)
    missing = weight <= 0
    return prediction.masked_fill(missing, 0), target.masked_fill(missing, 0), weight


def _hann(n: int, like: Tensor) -> Tensor:
    """Return the periodic Hann window at the centres of `n` cells: no cell has 0, even of two."""
    centres = (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n
    return torch.sin(math.pi * centres).square()


def _shells(field: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for every mode of `rfft2`, its shell and how many modes of `fft2` it stands for: 2 x (y, x // 2 + 1)."""
    ny, nx = field.shape[-2:]
    ky = torch.fft.fftfreq(ny, device=field.device)[:, None]
    kx = torch.fft.rfftfreq(nx, device=field.device)
    twins = 2 - ((kx == 0) | (kx == 0.5)).to(field.dtype)  # the conjugate ones are left out
    return (torch.hypot(ky, kx) * max(ny, nx)).round().long(), twins.expand(ny, -1)


def _shell_sums(modes: Tensor, shells: Tensor) -> Tensor:
    """Return the sum over the modes of every shell: (..., y, x // 2 + 1) -> (..., shell)."""
    room = 2 * max(shells.shape)  # no shell is further out than the longer side of the field
    return modes.new_zeros(*modes.shape[:-2], room).index_add(-1, shells.flatten(), modes.flatten(-2))


def _power(field: Tensor) -> Tensor:
    """Return the squared amplitude of every mode, (b, c, y, x // 2 + 1)."""
    spectrum = torch.fft.rfft2(field)
    return spectrum.real.square() + spectrum.imag.square()


def _normalised(prediction: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the fields in units of the target's range, from 0 up, and the weight of every cell; per channel."""
    prediction, target, weight = _hide_missing(prediction, target, weight)
    missing, within = weight <= 0, (0, 2, 3)
    high = target.masked_fill(missing, -math.inf).amax(within, keepdim=True)
    low = target.masked_fill(missing, math.inf).amin(within, keepdim=True)
    # Detached: the origin is no lever by which the lowest cell could make all others cheaper.
    lowest = prediction.detach().masked_fill(missing, math.inf).amin(within, keepdim=True)
    origin = torch.minimum(low, lowest)
    # A range within rounding is that of a constant, and squares in units of a much smaller one would overflow.
    info = torch.finfo(target.dtype)
    least = 8 * info.eps * torch.maximum(high.abs(), low.abs()) + info.tiny**0.25
    span = torch.where(high - low > least, high - low, 1)
    prediction, target = (((field - origin) / span).masked_fill(missing, 0) for field in (prediction, target))
    return prediction, target, weight


def _dissimilarities(prediction: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 - luminance (0 to 1) and 1 - contrast x structure (0 to 2) around every cell: 2 x (b, c, y, x).

    Written with the mean and variance of the error, which is the same and exactly 0 for equal fields.
    """
    valid = (weight > 0).to(target.dtype)
    (mean_p, spread_p), (mean_t, spread_t), (mean_e, spread_e) = (
        _local_moments(field, valid) for field in (prediction, target, prediction - target)
    )
    luminance = mean_e.square() / (mean_p.square() + mean_t.square() + _LUMINANCE)
    spread = spread_p + spread_t
    # No error varies more than twice as much as both fields, but one with huge local means may, by rounding.
    return luminance, torch.minimum(spread_e, 2 * spread) / (spread + _STRUCTURE)


def _local_moments(field: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of the valid cells in the window around every cell."""
    centre = weighted_mean(field, valid, planes=True).detach()  # moments of small numbers keep their digits
    offset = (field - centre) * valid
    count = _positive(_window_sum(valid))
    mean, square = _window_sum(offset) / count, _window_sum(offset.square()) / count
    return mean + centre, (square - mean.square()).clamp_min(0)


def _window_sum(field: Tensor) -> Tensor:
    """Return the Gaussian-weighted sum around every cell; banded matrices beat a one-channel convolution by far."""

    def band(n: int) -> Tensor:
        cells = torch.arange(n, dtype=field.dtype, device=field.device)
        distance = (cells[:, None] - cells).abs()
        return torch.exp(-0.5 * (distance / _SIGMA).square()) * (distance <= _WINDOW // 2)

    return band(field.shape[-2]) @ field @ band(field.shape[-1])


def _halved(prediction: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted means over 2 x 2 cells, fewer at an odd border, and the sums of their weights."""

    def pooled(field: Tensor) -> Tensor:
        return F.avg_pool2d(field, 2, ceil_mode=True, divisor_override=1)

    total = pooled(weight)
    return pooled(prediction * weight) / _positive(total), pooled(target * weight) / _positive(total), total


def _log_similarity(dissimilarity: Tensor) -> Tensor:
    """Return log(1 - dissimilarity), continued along its tangent where that is below the floor: finite everywhere."""
    cut = 1 - _FLOOR
    return torch.log1p(-dissimilarity.clamp_max(cut)) + (cut - dissimilarity).clamp_max(0) / _FLOOR
