"""Draw docs/explained/every_step.png: where masking late goes wrong on two elements, and the attacks that it weakens.

python -m benchmarks.every_step
"""

import json
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from scripts.make_results import RESULTS, ROOT, STRENGTH

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"


def loss(free: Tensor, salient: Tensor) -> Tensor:
    """A loss in which the two elements work together: what helps depends on where the other one is."""
    return free + 2 * salient - 2.5 * free * salient


def pgd(project: Callable[[Tensor], Tensor]) -> Tensor:
    """The points of PGD from the image (0, 0) with ε = 1: signed steps, each cut to the square and then projected."""
    points = [torch.zeros(2)]
    for _ in range(8):
        at = points[-1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(at[0], at[1]), at)
        points.append(project((points[-1] + 0.25 * gradient.sign()).clamp(-1, 1)))
    return torch.stack(points)


def main() -> None:
    """Write the picture."""
    mpl.rcParams["font.size"] = 9
    figure = Figure((9.2, 3.9), layout="constrained")
    toy, bars = figure.subplots(1, 2, width_ratios=(1, 1.25))

    axis = torch.linspace(-1.25, 1.25, 101)
    toy.contourf(axis, axis, loss(axis, axis[:, None]), levels=16, cmap="Greys", alpha=0.55)
    toy.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color=GREY, linewidth=1)
    toy.plot([-1, 1], [0, 0], color="black", linewidth=3, label="allowed: the salient element stays")
    bare, projected = pgd(lambda point: point), pgd(lambda point: point * torch.tensor([1.0, 0.0]))
    toy.plot(*bare.T, "o-", color=GREY, markersize=4, label="bare attack")
    late = bare[-1] * torch.tensor([1.0, 0.0])
    toy.annotate("", late.tolist(), bare[-1].tolist(), arrowprops={"arrowstyle": "->", "color": ORANGE, "lw": 2})
    toy.plot(*late, "X", color=ORANGE, markersize=11, label=f"masked late: loss {loss(*late):+.0f}")
    ends = f"projected at every step: loss {loss(*projected[-1]):+.0f}"
    toy.plot(*projected.T, "o-", color=BLUE, markersize=6, label=ends)
    toy.set(xlabel="change of the element that may change", ylabel="change of the salient element", aspect="equal")
    toy.set_title("Two elements (darker: higher loss)", fontsize=9)
    figure.legend(*toy.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False, fontsize=8)

    result = json.loads((RESULTS / "attack_strength" / "result.json").read_text(encoding="utf-8"))
    rows = np.arange(len(STRENGTH))
    for way, colour, shift, name in (("late", ORANGE, 0.2, "late"), ("projected", BLUE, -0.2, "at every step")):
        counts = [result["correct"][attack][way] for attack in STRENGTH]
        bars.barh(rows + shift, counts, 0.38, color=colour, label=name)
        bars.bar_label(bars.containers[-1], padding=2, fontsize=8)
    bars.set_yticks(rows, STRENGTH)
    bars.invert_yaxis()
    bars.set(xlabel=f"images still correct, of {result['images']}: fewer is a stronger attack", xlim=(0, 72))
    bars.spines[["top", "right"]].set_visible(False)
    bars.set_title("Attacks of torchattacks, half of all elements salient", fontsize=9)
    figure.savefig(ROOT / "docs" / "explained" / "every_step.png", dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    main()
