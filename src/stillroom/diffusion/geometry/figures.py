"""The plots of a study of sampling trajectories, for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from stillroom.diffusion.geometry.calibration import central
from stillroom.reports.plots import ACCENT, INK, LINE, MUTED, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stillroom.diffusion.geometry.study import Study

__all__ = [
    "boomerang",
    "closed_form",
    "density",
    "deviations",
    "distances",
    "gaussian_score",
    "plane",
    "reconstruction",
    "shapes",
]

LOOKS = ((ACCENT, "-"), (INK, "--"), (MUTED, ":"), (INK, "-."))
BENT = 0.1  # of the largest curvature: below, a curve is almost straight and its torsion is noise
MOST = 60  # curves of single samples in one plot


def distances(study: Study) -> str:
    """Draw norms and distances to the end over the noise level."""
    metrics, sigmas = study.metrics, study.path.sigmas
    size = study.path.states[0, 0].numel()
    norm = metrics.norm.double().square()
    law = (norm[-1].mean() + norm.new_tensor(sigmas).square() * size).sqrt()

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        _curves(left, sigmas, {"state": metrics.norm, "output": metrics.norm_denoised})
        left.plot(sigmas, law.tolist(), color=INK, linestyle=":", linewidth=1.2, label="√(E‖x₀‖² + σ²d)")
        left.set_title("norm")
        last = study.jump[-1]
        apart = [vector_norm((x - last).flatten(2), dim=-1) for x in (study.path.states, study.jump[:-1])]
        _curves(right, sigmas, {"state": apart[0], "output": apart[1]})
        right.set_title("distance to the last output")
        for axes in (left, right):
            axes.set_yscale("log")
            axes.legend(fontsize=9)
        lowest = float(apart[0].mean(1).min())
        right.set_ylim(bottom=0.3 * lowest)  # outputs of a closed form arrive exactly

    return svg(draw, 8.2, 3.3)


def deviations(study: Study) -> str:
    """Draw the deviation of states and outputs from their chords."""
    sigmas = study.path.sigmas

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        _curves(left, sigmas[1:-1], {"state": study.metrics.deviation}, samples=True)
        left.set_title("states: deviation from the chord")
        _curves(right, sigmas[1:-1], {"output": study.metrics.deviation_denoised}, samples=True)
        right.set_title("outputs: deviation from theirs")
        for axes in (left, right):
            axes.set_ylim(bottom=0)

    return svg(draw, 8.2, 3.1)


def boomerang(study: Study) -> str:
    """Draw the aligned trajectories in their three dimensions."""
    shown = study.coordinates[:, central(study.coordinates)[:MOST]].cpu()

    def draw(figure: Figure) -> None:
        axes: Any = figure.add_subplot(projection="3d")
        for curve in shown.unbind(1):
            axes.plot(*curve.T.tolist(), color=MUTED, linewidth=0.8, alpha=0.5)
        axes.plot(*shown.mean(1).T.tolist(), color=ACCENT, linewidth=2.4)
        axes.plot(*shown[0].mean(0)[:, None].tolist(), "o", color=INK, markersize=5)
        axes.plot([0], [0], [0], "s", color=INK, markersize=5)
        lift = 0.09 * float(shown[..., 2].max() - shown[..., 2].min())
        for name, place in (("noise", shown[0].mean(0)), ("image", shown[-1].mean(0))):
            axes.text(float(place[0]), float(place[1]), float(place[2]) + lift, name, color=INK, ha="center")
        axes.set_xlabel("chord", labelpad=8)
        axes.set_ylabel("first direction across")
        axes.set_zlabel("second")
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.get_major_locator().set_params(nbins=5)
            axis.set_pane_color((0, 0, 0, 0))
            axis.line.set_color(LINE)
            axis._axinfo["grid"].update(color=LINE, linewidth=0.6)
        axes.set_box_aspect((1.7, 1, 0.8), zoom=1.02)
        axes.view_init(elev=22, azim=-62)

    return svg(draw, 7.6, 4.0)


def plane(study: Study) -> str:
    """Draw the two directions across the chord over the noise level and against each other."""
    sigmas, coordinates = study.path.sigmas, study.coordinates

    def draw(figure: Figure) -> None:
        first, second, third = figure.subplots(1, 3)
        _curves(first, sigmas, {"": coordinates[..., 1]}, samples=True)
        _curves(second, sigmas, {"": coordinates[..., 2]}, samples=True)
        first.set_title("first direction across")
        second.set_title("second direction across")
        for curve in coordinates[:, :MOST].unbind(1):
            third.plot(*curve[:, 1:].T.tolist(), color=MUTED, linewidth=0.8, alpha=0.5)
        third.plot(*coordinates.mean(1)[:, 1:].T.tolist(), color=ACCENT, linewidth=2.2)
        third.set_title("across the chord, same scale")
        third.set_aspect("equal", adjustable="datalim")
        third.grid()

    return svg(draw, 9.6, 3.1)


def reconstruction(study: Study) -> str:
    """Draw how much few directions explain, and what is left of every state."""
    projection = study.projection

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for number, (name, share) in enumerate(
            {"across the chord": projection.explained_orthogonal, "whole trajectory": projection.explained_full}.items()
        ):
            left_out = (1 - share.mean(0)).clamp_min(1e-9)
            colour, dash = LOOKS[number]
            counts = range(1, share.shape[1] + 1)
            left.plot(counts, left_out.tolist(), color=colour, linestyle=dash, marker="o", markersize=4, label=name)
        left.set_yscale("log")
        left.set_title("variance not explained")
        left.set_xlabel("directions")
        left.grid(axis="y")
        left.legend(fontsize=9)
        rest = {
            "chord": projection.reconstruction_error[0].T,
            "+ 1 direction": projection.reconstruction_error[1].T,
            "+ 2": projection.reconstruction_error[2].T,
            "+ 3": projection.reconstruction_error[3].T,
        }
        _curves(right, study.path.sigmas, rest)
        right.set_title("error of states rebuilt from")
        right.set_ylim(bottom=0)
        right.legend(fontsize=9)

    return svg(draw, 8.2, 3.3)


def shapes(study: Study) -> str:
    """Draw curvature and torsion, times the noise level that gives the scale, over the noise level."""
    levels = study.shape.curvature.new_tensor(study.path.sigmas)[:, None]
    curvature, torsion = (levels * value for value in (study.shape.curvature, study.shape.torsion))
    bends = curvature > BENT * curvature.nan_to_num(0).amax(0)
    scaled = (curvature, torsion.where(bends, torch.nan))

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2)
        for axes, value, title in zip(panels, scaled, ("curvature × σ", "torsion × σ"), strict=True):
            _curves(axes, study.path.sigmas, {"": value}, samples=True, median=True)
            axes.set_title(title)

    return svg(draw, 8.2, 3.1)


def closed_form(study: Study) -> str:
    """Draw how far a learned model is from the closed form of its data."""
    assert study.deviation is not None
    found, sigmas = study.deviation, study.path.sigmas
    scale = (study.path.states[:-1] - study.path.denoised).flatten(2).norm(dim=-1)

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        _curves(
            left,
            sigmas,
            {
                "‖D* − D‖ on the model's": found.on_learned,
                "‖D* − D‖ on the closed form's": found.on_optimal,
                "outputs, each on its own": found.outputs,
                "states": found.states[:-1],
            },
        )
        left.set_title("distance")
        left.set_ylim(bottom=0)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=4, fontsize=9)
        _curves(right, sigmas, {"": found.on_learned / scale}, samples=True)
        right.set_yscale("log")
        right.set_title("relative error of the score")

    return svg(draw, 8.2, 3.6)


def density(study: Study) -> str:
    """Draw by how much the density of the noisy data grows from a state to its output and over a step."""
    assert study.ascent is not None
    found, sigmas = study.ascent, study.path.sigmas

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _curves(axes, sigmas, {"output": found.denoised - found.state, "next state": found.step - found.state})
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_title("gain of log p at the step's noise level")
        axes.legend(fontsize=9)

    return svg(draw, 6.4, 3.1)


def gaussian_score(study: Study) -> str:
    """Draw the relative error of the score of the data's Gaussian."""
    assert study.gaussian is not None
    error = study.gaussian.score_error

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _curves(axes, study.path.sigmas, {"": error}, samples=True)
        axes.set_yscale("log")
        axes.set_title("relative error of the Gaussian's score")

    return svg(draw, 6.4, 3.1)


def _curves(
    axes: Axes,
    sigmas: Sequence[float],
    series: Mapping[str, Tensor],
    *,
    samples: bool = False,
    median: bool = False,
) -> None:
    """Draw means (or medians) of curves [T, B] over falling noise, with every sample behind them if asked for."""
    axes.set_xscale("log")
    axes.set_xlim(sigmas[0] * 1.15, sigmas[-1] / 1.15)
    axes.set_xlabel("σ, falling as sampling goes on")
    axes.grid(axis="y")
    for number, (name, curves) in enumerate(series.items()):
        levels = sigmas[: len(curves)]  # outputs lack the last one
        if samples:
            for curve in curves[:, :MOST].unbind(1):
                axes.plot(levels, curve.tolist(), color=MUTED, linewidth=0.7, alpha=0.45)
        colour, dash = LOOKS[number]
        mean = torch.nanquantile(curves, 0.5, dim=1) if median else torch.nanmean(curves, dim=1)
        axes.plot(levels, mean.tolist(), color=colour, linestyle=dash, linewidth=2.0, label=name or None)
