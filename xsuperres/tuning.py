"""Fine-tuning: what must be the same as in the model that ``init=`` gives, and what is taken over from it.

Weights mean something only with the variables, transforms and scaling that they were trained with.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from xsuperres.config import of_variable
from xsuperres.errors import ConfigError
from xsuperres.fields.checks import check_units
from xsuperres.fields.components import mirror_signs
from xsuperres.material import Sources
from xsuperres.model.artefact import SRModel
from xsuperres.settings import FitSettings

__all__ = ["check_start", "started_from"]


def check_start(init: SRModel, sources: Sources, settings: FitSettings) -> Sources:
    """Return the sources with their predictors in the order of `init`; nothing is read.

    Raises
    ------
    ConfigError, UnitsError
        If `init` is no model, or one of other variables, units or transforms.
    """
    if not isinstance(init, SRModel):
        raise ConfigError(f"init must be an SRModel or the path of one, got {type(init).__name__}.")
    names = [_name(da.name) for da in sources.targets]
    if names != list(init.names):
        raise ConfigError(
            f"init= was trained on the variables {list(init.names)}, in this order, this fit is of {names}; select "
            "or rename them, or train anew."
        )
    given = {_name(da.name): da for da in sources.predictors}
    wanted = [predictor.variable.name for predictor in init.predictors]
    if set(given) != set(wanted):
        raise ConfigError(f"init= was trained with the predictors {wanted}, this fit has {list(given)}; give the same.")
    sources = replace(sources, predictors=tuple(given[name] for name in wanted))
    for field, theirs in zip(sources.fields, init.inputs, strict=True):
        check_units(field.array, theirs.variable.units, what=repr(field.name), like="init")
    for name in names:
        theirs, ours = (of_variable(data.transform, name) for data in (init.data, settings.data))
        if theirs != ours:
            raise ConfigError(
                f"init= was trained with transform={theirs!r} of {name!r}, this fit has {ours!r}; use "
                f"data={{'transform': {init.data.transform!r}}}."
            )
    return sources


def started_from(model: SRModel, init: SRModel, sources: Sources, settings: FitSettings) -> SRModel:
    """Return the untrained model with the weights and scaling of `init`.

    Raises
    ------
    ConfigError, UnitsError
        If networks, input channels or static fields differ.
    """
    _check_missing(model, init)
    _check_network(model, init)
    flipped = {index for along in mirror_signs(sources.fields, settings.sampling).values() for index in along}
    about = [init.inputs[index].variable.name for index in sorted(flipped) if init.inputs[index].scaling.mean != 0]
    if about:
        raise ConfigError(
            f"init= was scaled about a mean other than 0 for {about}, so mirroring cannot change the sign; fine-tune "
            "without flip_sign, or train anew."
        )
    for name, field in init.static.data_vars.items():
        check_units(model.static[name], field.attrs.get("units"), what=f"static field {name!r}", like="init")
    model.network.load_state_dict(init.network.state_dict())
    targets = [
        replace(  # the units of inputs and output
            ours, scaling=theirs.scaling, baselines=replace(ours.baselines, residual_sd=theirs.baselines.residual_sd)
        )
        for ours, theirs in zip(model.targets, init.targets, strict=True)
    ]
    return replace(
        model,
        targets=tuple(targets),
        predictors=init.predictors,
        static_scaling=init.static_scaling,
    )


def _name(name: object) -> str | None:
    return None if name is None else str(name)


def _check_missing(model: SRModel, init: SRModel) -> None:
    """Refuse variables with missing cells where those of `init` had none, and the other way round."""
    for ours, theirs in zip(model.inputs, init.inputs, strict=True):
        if ours.variable.had_missing != theirs.variable.had_missing:
            theirs_are, ours_are = (
                "had missing cells" if part.variable.had_missing else "was complete" for part in (theirs, ours)
            )
            raise ConfigError(
                f"{ours.variable.name!r} {theirs_are} when init= was trained, in these data it {ours_are}: the masks "
                "that the network is shown differ; fine-tune on data of the same kind, or train anew."
            )


def _check_network(model: SRModel, init: SRModel) -> None:
    mine, its = (asdict(replace(m.spec, domain=None)) for m in (model, init))
    if mine != its:
        differing = [name for name in mine if mine[name] != its[name]]
        raise ConfigError(
            f"init= has another network: {', '.join(differing)} differ; fit with the same settings, static fields "
            "and scale to fine-tune."
        )
    if (model.data.domain, model.data.reach) != (init.data.domain, init.data.reach):
        raise ConfigError(
            f"init= was trained with data={{'domain': {init.data.domain!r}, 'contrast_radius': "
            f"{init.data.contrast_radius}}}, this fit has {model.data.domain!r} and {model.data.contrast_radius}: its "
            "weights belong to other input channels; use the same."
        )
    if model.static_scaling.names != init.static_scaling.names:
        raise ConfigError(
            f"init= was trained with static fields {init.static_scaling.names}, these are {model.static_scaling.names}."
        )
    if model.spec.config.location_features and model.spec.domain != init.spec.domain:
        raise ConfigError("init= has location features of another domain; they cannot be moved.")
