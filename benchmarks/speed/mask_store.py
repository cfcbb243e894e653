"""What maps from a store cost: bytes on disk, reading, building, and the training step with them.

    python -m benchmarks.speed.mask_store [--images 50000] [--width 16] [--rounds 9] [--device cuda] [--out FILE]

* Size: a store of 3×32×32 maps, one bit per element.
* Reading: 512 random maps against decoding a batch of 64 JPEG files with Pillow, of 32×32 and of 224×224 pixels. The files
  are in memory and the store in the page cache; what new processes take for their first batch is measured by itself.
* Building: with the gradient of a teacher, against the teacher's bare passes (one forward, one backward to the input).
* Training: a SIP-AT step with maps from the store, and with the teacher in the loop, against the Madry step; with images at
  hand, and through a loader that crops and flips (in the training process: nothing is hidden behind workers).

Networks are ResNet-18s of the given width, K = 10 steps. Ways are timed turn by turn. Work on the CPU alone is timed by how
long the process had the core, because the machine may be shared; the record says so.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from benchmarks.record import run_record, write_json
from benchmarks.speed.measure import gradient, interleaved, ratio, resnet18, shown
from sip_plugin import AdversarialTrainer
from sip_plugin.salience import GradientSalience, MaskStore, SalientDataset
from sip_plugin.salience.images import to_float

STEPS, READ = 10, 512
Results = dict[str, dict[str, Any]]


def _clock(device: str) -> Callable[[], float]:
    return time.process_time if device == "cpu" else time.perf_counter


def bright(images: Tensor) -> Tensor:
    """Maps that cost nothing to make."""
    return images > 0.5


class Augmented(Dataset[tuple[Tensor, int]]):
    """What a loader of images alone does, with the same transform."""

    def __init__(self, dataset: Any, transform: Callable[[Tensor], Tensor]) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        return to_float(self.transform(tv_tensors.Image(image)).as_subclass(Tensor)), label


# --- reading --------------------------------------------------------------------------------------------------------------


def jpegs(count: int, size: int) -> list[bytes]:
    """JPEG files of quality 75 with the smooth contents and the fine grain of photographs, about 2 bits a pixel."""
    generator = torch.Generator().manual_seed(size)
    coarse = torch.rand(count, 3, max(2, size // 8), max(2, size // 8), generator=generator)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    grain = 0.04 * torch.randn(count, 1, size, size, generator=generator)
    pictures = (smooth + grain).clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    files = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=75)
        files.append(file.getvalue())
    return files


def decode(files: Sequence[bytes]) -> list[np.ndarray]:
    """The pixels of a batch of JPEG files."""
    return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


_FIRST_READ = f"""
import sys, time, torch
from sip_plugin.salience import MaskStore
torch.set_num_threads(1)
indices = torch.randint(int(sys.argv[2]), ({READ},), generator=torch.Generator().manual_seed(0))
start = time.perf_counter()
MaskStore(sys.argv[1])[indices]
print(time.perf_counter() - start)
"""
_FIRST_DECODING = """
import io, pickle, sys, time, numpy as np
from pathlib import Path
from PIL import Image
files = pickle.loads(Path(sys.argv[1]).read_bytes())
start = time.perf_counter()
for file in files:
    np.asarray(Image.open(io.BytesIO(file)))
print(time.perf_counter() - start)
"""


def first(code: str, *arguments: object, processes: int) -> float:
    """Median of the seconds that new processes print."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    runs = [subprocess.run(command, check=True, capture_output=True).stdout for _ in range(processes)]
    return statistics.median(map(float, runs))


def reading(folder: Path, count: int, rounds: int, processes: int) -> tuple[Results, dict[str, Any]]:
    """Build a store of so many images, and read it."""
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    data, path = TensorDataset(images, torch.zeros(count, dtype=torch.int64)), folder / "all.masks"
    start = time.perf_counter()
    store = MaskStore.build(path, data, bright, 512)
    built = time.perf_counter() - start
    store.verify()
    files = {size: jpegs(64, size) for size in (32, 224)}
    ways: dict[str, Callable[[], Any]] = {
        "read": lambda: store[torch.randint(count, (READ,))],
        **{f"JPEG {size}": partial(decode, batch) for size, batch in files.items()},
    }
    seconds = interleaved(ways, rounds=rounds, device="cpu", clock=time.process_time)
    results = {
        f"{READ} random maps / decoding 64 JPEGs of {size}×{size}": ratio(seconds, "read", f"JPEG {size}")
        for size in files
    }
    batch = folder / "jpegs"
    batch.write_bytes(pickle.dumps(files[32]))
    facts = {
        "images": count,
        "bytes": (path / "maps.npy").stat().st_size,
        "bytes_per_image": (path / "maps.npy").stat().st_size / count,
        "seconds_to_build_with_maps_that_cost_nothing": built,
        "seconds_of_a_new_process_to_open_and_read": first(_FIRST_READ, path, count, processes=processes),
        "seconds_of_a_new_process_to_decode_64_jpegs_of_32x32": first(_FIRST_DECODING, batch, processes=processes),
        "jpeg_bytes_per_file": {size: statistics.mean(map(len, batch)) for size, batch in files.items()},
    }
    return results, facts


# --- building -------------------------------------------------------------------------------------------------------------


def building(folder: Path, teacher: nn.Module, images: Tensor, batch: int, rounds: int, device: str) -> Results:
    """The whole of ``MaskStore.build``, against the passes it needs, and against making the maps and dropping them."""
    data = TensorDataset(images, torch.zeros(len(images), dtype=torch.int64))
    mask_fn = GradientSalience(teacher)
    batches = [to_float(part).to(device) for part in images.split(batch)]
    ways: dict[str, Callable[[], Any]] = {
        "build": lambda: MaskStore.build(folder / "made", data, mask_fn, batch, overwrite=True, progress=False),
        "maps, dropped": lambda: [mask_fn(part) for part in batches],
        "bare passes": lambda: [gradient(teacher, part) for part in batches],
    }
    seconds = interleaved(ways, rounds=rounds, device=device, clock=_clock(device))
    return {
        "MaskStore.build / the teacher's bare passes": ratio(seconds, "build", "bare passes"),
        "MaskStore.build / GradientSalience, maps dropped": ratio(seconds, "build", "maps, dropped"),
    }


# --- training -------------------------------------------------------------------------------------------------------------


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    """Batches of a loader, epoch after epoch."""
    while True:
        yield from loader


def training(
    folder: Path, model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, options: argparse.Namespace
) -> Results:
    """Steps (search, loss, backward) that differ in where their maps come from."""
    device, size = options.device, options.batch
    data = TensorDataset(images, labels.cpu())
    store = MaskStore.build(folder / "train", data, GradientSalience(teacher), size, progress=False)
    madry = AdversarialTrainer(model, "madry", steps=STEPS)
    sip_at = AdversarialTrainer(model, "sip-at", steps=STEPS)
    with_teacher = AdversarialTrainer(model, "sip-at", salience=GradientSalience(teacher), steps=STEPS)
    batch, targets = to_float(images[:size]).to(device), labels[:size].to(device)
    maps = store[:size].to(device)
    crop = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    plain = endless(DataLoader(Augmented(data, crop), batch_size=size, shuffle=True, drop_last=True))
    salient = endless(DataLoader(SalientDataset(data, store, crop), batch_size=size, shuffle=True, drop_last=True))

    def step(trainer: AdversarialTrainer, *given: Tensor) -> None:
        model.train()
        trainer(*(part.to(device) for part in given)).backward()

    ways: dict[str, Callable[[], Any]] = {
        "Madry": lambda: step(madry, batch, targets),
        "maps at hand": lambda: step(sip_at, batch, targets, maps),
        "maps from the store": lambda: step(sip_at, batch, targets, store[torch.randperm(len(store))[:size]]),
        "teacher in the loop": lambda: step(with_teacher, batch, targets),
        "Madry, loader": lambda: step(madry, *next(plain)),
        "maps from SalientDataset, loader": lambda: step(sip_at, *next(salient)),
    }
    seconds = interleaved(ways, rounds=options.rounds, device=device, clock=_clock(device))
    results = {f"SIP-AT step, {name} / Madry step": ratio(seconds, name, "Madry") for name in list(ways)[1:4]}
    results["SIP-AT step with SalientDataset's loader / Madry step with a loader of images"] = ratio(
        seconds, "maps from SalientDataset, loader", "Madry, loader"
    )
    loaders = {"SalientDataset": lambda: next(salient), "images alone": lambda: next(plain)}
    seconds = interleaved(loaders, rounds=3 * options.rounds, device=device, clock=_clock(device))
    results["a batch of SalientDataset / a batch of images alone, both cropped and flipped"] = ratio(
        seconds, "SalientDataset", "images alone"
    )
    return results


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=50_000, help="images of the store whose size and reading are measured"
    )
    parser.add_argument("--trained", type=int, default=512, help="images of the store that is built with a teacher")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage (the usual ResNet-18: 64)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processes", type=int, default=7, help="new processes, for what the first batch takes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    model, teacher = (resnet18(options.width).to(options.device) for _ in range(2))
    teacher.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # every round computes the same
    images = torch.randint(256, (options.trained, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        labels = torch.cat([model(to_float(part).to(options.device)).argmax(1) for part in images.split(options.batch)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results, facts = reading(folder, options.images, 3 * options.rounds, options.processes)
        results |= building(folder, teacher, images, options.batch, options.rounds, options.device)
        results |= training(folder, model, teacher, images, labels, options)
    print(json.dumps(facts, indent=2))
    print(shown(list(results.items())))
    if options.out is not None:
        conditions = {
            "network": f"ResNet-18 of width {options.width}, and such a teacher",
            "batch": options.batch,
            "steps": STEPS,
            "device": options.device,
            "clock": "CPU time of the process" if options.device == "cpu" else "wall clock, for reading CPU time",
            "store": facts,
        }
        write_json(options.out, run_record(options.seed) | conditions | {"results": results})
    return results | {"store": facts}


if __name__ == "__main__":
    main()
