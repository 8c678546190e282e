"""Text and HTML that tell a scientist what a model is, what it was trained on, and how good it is."""

from __future__ import annotations

import html

from xsuperres.model.artefact import SRModel, Target, Variable

__all__ = ["as_html", "as_text"]


def _rows(model: SRModel) -> list[tuple[str, str]]:
    static = ", ".join(model.static_scaling.names) or "none"
    domain = "fixed domain" if model.fixed_domain else "open domain (applies elsewhere, given static fields)"
    training = model.training
    period = " to ".join(training.period) if training.period else "no time"
    halo = "the whole domain is looked at" if model.halo is None else f"halo {model.halo} coarse cells"
    rows = [
        (
            "variable",
            ", ".join(_called(target.variable) + _made_from(target) + _within(target) for target in model.targets),
        ),
        ("scale", f"x{model.scale}, {halo}"),
        ("network", _network(model)),
        ("grid", f"{model.grid.describe()}; {domain}"),
        ("static fields", static),
    ]
    if model.predictors:
        rows.append(("predictors", ", ".join(str(predictor.variable.name) for predictor in model.predictors)))
    rows.append(("trained on", f"{period}, {training.samples} samples, {training.steps} steps, seed {training.seed}"))
    if training.validation:
        rows.append(("validation", _score(model)))
    rows.append(("digest", model.digest[:16]))
    return rows


def _called(variable: Variable) -> str:
    units = f" [{variable.units}]" if variable.units else ""
    return f"{variable.long_name or variable.standard_name or variable.name or 'without a name'}{units}"


def _made_from(target: Target) -> str:
    return "" if target.source is None else f" from {target.source.name or 'coarse data'}"


def _within(target: Target) -> str:
    low, high = target.bounds
    told = [f"{word} {bound:g}" for word, bound in (("at least", low), ("at most", high)) if bound is not None]
    return "".join(f", {part}" for part in told)


def _network(model: SRModel) -> str:
    spec = model.spec
    parameters = sum(p.numel() for p in model.network.parameters())
    window = f", windows of {spec.time_window} frames" if spec.time_window else ""
    kind = "" if model.training.kind == "supervised" else f", {model.training.kind}"
    return f"{spec.backbone} backbone, {spec.upsampling} upsampling{window}{kind}, {parameters:,} parameters"


def _score(model: SRModel) -> str:
    score, variable = model.training.validation, model.variable
    units = f" [{variable.units}]" if variable.units else ""
    told = f"RMSE {score['rmse']:.4g}{units}" if len(model.targets) == 1 else f"RMSE {score['rmse']:.4g} sd"
    return (
        f"{told}, {score['ratio_to_bicubic']:.3f} of bicubic, {score['ratio_to_linear']:.3f} of the linear baseline "
        f"({model.training.validation_kind})"
    )


def _title(model: SRModel) -> str:
    return f"xsuperres.SRModel {', '.join(name or '' for name in model.names)} x{model.scale}"


def as_text(model: SRModel) -> str:
    """Return a few lines of text."""
    rows = _rows(model)
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"<{_title(model)}>", *(f"  {name.ljust(width)}  {value}" for name, value in rows)])


def as_html(model: SRModel) -> str:
    """Return a table for notebooks."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in _rows(model)
    )
    title = html.escape(_title(model))
    return f"<div><b>{title}</b><table>{cells}</table></div>"
