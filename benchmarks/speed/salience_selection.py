"""What making salience maps costs, over one forward and one backward pass to the input of a ResNet-50 on the same batch.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.speed.salience_selection [--batch 64] [--size 224] [--rounds 5]
        [--small-batch 4] [--small-rounds 25] [--device cuda] [--out FILE]

The network is torchvision's ResNet-50, untrained, in eval mode; the images are random. The selection is made from the very
gradients that the passes give. Its peer is the plain way, values sorted together with their positions; the maps of both must
be the same bit for bit. Whole maps are timed on a smaller batch: turns of seconds, so that a busy machine slows both ways
alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from benchmarks.record import run_record, write_json
from benchmarks.speed.measure import gradient, interleaved, ratio, shown
from sip_plugin.salience import CAMSalience, GradientSalience
from sip_plugin.salience.selection import top_mass_mask

PASSES = "forward and backward"


def selected_by_position(scores: Tensor, mass: float = 0.5) -> Tensor:
    """The map of eq. 8 by sorting values together with their positions."""
    flat = scores.flatten(1)
    ordered, order = flat.sort(dim=1, descending=True, stable=True)
    held = ordered.cumsum(1, dtype=torch.float64)
    before = torch.cat([torch.zeros_like(held[:, :1]), held[:, :-1]], 1)
    needed = before < mass * held[:, -1:]
    return torch.zeros_like(needed).scatter_(1, order, needed).view(scores.shape)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the ratios, write the result.

    Raises:
        RuntimeError: If the two ways to select give different maps.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--small-batch", type=int, default=4, help="images of which whole maps are made")
    parser.add_argument("--small-rounds", type=int, default=25)
    parser.add_argument("--size", type=int, default=224, help="height and width of an image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    model: nn.Module = resnet50().eval().to(options.device)
    images = torch.rand(options.batch, 3, options.size, options.size, device=options.device)

    scores = gradient(model, images).abs()
    salience = top_mass_mask(scores)
    if not torch.equal(salience, selected_by_position(scores)):
        raise RuntimeError("top_mass_mask does not give the maps of a plain selection.")
    selection: dict[str, Callable[[], Any]] = {
        PASSES: partial(gradient, model, images),
        "top_mass_mask": partial(top_mass_mask, scores),
        "sorting values with their positions": partial(selected_by_position, scores),
    }
    few = images[: options.small_batch]
    whole: dict[str, Callable[[], Any]] = {
        PASSES: partial(gradient, model, few),
        "GradientSalience": partial(GradientSalience(model), few),
        "CAMSalience": partial(CAMSalience(model), few),
    }
    results: dict[str, Any] = {}
    for ways, rounds in ((selection, options.rounds), (whole, options.small_rounds)):
        seconds = interleaved(ways, rounds=rounds, device=options.device)
        results |= {f"{name} / {PASSES}": ratio(seconds, name, PASSES) for name in ways if name != PASSES}
    print(shown(list(results.items())))
    print(f"salient: {salience.float().mean():.1%} of all elements")
    if options.out is not None:
        conditions = {
            "network": "ResNet-50 (torchvision, untrained)",
            "images": list(images.shape),
            "images_of_whole_maps": list(few.shape),
            "device": options.device,
            "precision": "float32",
            "salient_share": salience.float().mean().item(),
        }
        write_json(options.out, run_record(options.seed) | conditions | {"results": results})
    return results


if __name__ == "__main__":
    main()
