"""An epoch of PGD-10 training of a ResNet-18 on random 3×32×32 images: images per second, and the share of the card's peak.

    python -m benchmarks.speed.epoch [--batch 512] [--width 64] [--images 50000] [--device cuda] [--out FILE]

Under bfloat16 autocast in channels-last: Madry's search as it is, folded, compiled, and both. Floating-point operations are
counted on one step as it is, multiplications and additions each; the peak is the maker's for dense bfloat16.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import run_record, write_json
from benchmarks.speed.measure import ALPHA, EPS, STEPS, resnet18, wait
from sip_plugin import AdversarialTrainer

PEAK = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}  # per second


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    shape = (options.batch, 3, 32, 32)
    images = torch.rand(shape, device=options.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (options.batch,), device=options.device)
    steps = max(1, options.images // options.batch)
    card = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    peak = next((value for name, value in PEAK.items() if name in card), None)
    results: dict[str, dict[str, float | None]] = {}
    operations = 0
    for compiled in (False, True) if options.device == "cuda" else (False,):
        for folded in (False, True):
            model = resnet18(options.width).to(options.device).train()
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            settings: dict[str, Any] = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}
            trainer = AdversarialTrainer(model, "madry", compile=compiled, fold_batchnorm=folded, **settings)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

            def step(trainer: AdversarialTrainer = trainer, optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.zero_grad()
                with torch.autocast(options.device, torch.bfloat16):
                    loss = trainer(images, labels)
                loss.backward()
                optimizer.step()

            if not operations:
                with FlopCounterMode(display=False) as counter:
                    step()
                operations = counter.get_total_flops()
            for _ in range(3):  # compilation and choice of kernels
                step()
            wait(options.device)
            began = time.perf_counter()
            for _ in range(steps):
                step()
            wait(options.device)
            seconds = time.perf_counter() - began
            name = ", ".join(["compiled"] * compiled + ["folded"] * folded) or "as it is"
            results[name] = {
                "seconds": seconds,
                "images_per_second": steps * options.batch / seconds,
                "share_of_peak": None if peak is None else operations * steps / seconds / peak,
            }
            print(f"{name}: {results[name]}", flush=True)
            result = {"card": card, "batch": options.batch, "width": options.width, "steps": steps, "results": results}
            result["operations_of_a_step"] = operations
            if options.out is not None:
                write_json(options.out, run_record(0) | result)
    return result


if __name__ == "__main__":
    main()
