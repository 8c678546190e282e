"""Text and HTML that tell a scientist what a model is, what it was trained on, and how good it is."""

from __future__ import annotations

import html

from xsuperres.model.artefact import SRModel

__all__ = ["as_html", "as_text"]


def _rows(model: SRModel) -> list[tuple[str, str]]:
    spec, variable, training = model.spec, model.variable, model.training
    parameters = sum(p.numel() for p in model.network.parameters())
    units = f" [{variable.units}]" if variable.units else ""
    static = ", ".join(model.static_scaling.names) or "none"
    domain = "fixed domain" if model.fixed_domain else "open domain (applies elsewhere, given static fields)"
    period = " to ".join(training.period) if training.period else "no time"
    rows = [
        ("variable", f"{variable.long_name or variable.standard_name or variable.name or 'without a name'}{units}"),
        ("scale", f"x{model.scale}, halo {model.halo} coarse cells"),
        ("network", f"{spec.backbone} backbone, {spec.upsampling} upsampling, {parameters:,} parameters"),
        ("grid", f"{model.grid.describe()}; {domain}"),
        ("static fields", static),
        ("trained on", f"{period}, {training.samples} samples, {training.steps} steps, seed {training.seed}"),
    ]
    score = training.validation
    if score:
        rows.append(
            (
                "validation",
                f"RMSE {score['rmse']:.4g}{units}, {score['ratio_to_bicubic']:.3f} of bicubic, "
                f"{score['ratio_to_linear']:.3f} of the linear baseline ({training.validation_kind})",
            )
        )
    rows.append(("digest", model.digest[:16]))
    return rows


def as_text(model: SRModel) -> str:
    """Return a few lines of text."""
    rows = _rows(model)
    width = max(len(name) for name, _ in rows)
    title = f"<xsuperres.SRModel {model.variable.name or ''} x{model.scale}>"
    return "\n".join([title, *(f"  {name.ljust(width)}  {value}" for name, value in rows)])


def as_html(model: SRModel) -> str:
    """Return a table for notebooks."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in _rows(model)
    )
    title = html.escape(f"xsuperres.SRModel {model.variable.name or ''} x{model.scale}")
    return f"<div><b>{title}</b><table>{cells}</table></div>"
