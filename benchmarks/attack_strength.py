"""Projecting every step against masking only the result: how many images each attack of torchattacks leaves correct.

    python -m benchmarks.attack_strength [--images 64] [--out FOLDER]

A small convolutional network, trained on scikit-learn's digits (as 3×16×16 images with a little noise); a random half of all
elements is salient, another half for each image. Both ways use the same seeds.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchattacks
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from benchmarks.record import run_record, write_json, write_text
from sip_plugin import AdversarialTrainer, SIPWrapper

LINF = {"eps": 0.12, "alpha": 0.02, "steps": 10}
SMOOTHED = {"steps": 10, "noise_batch_size": 4, "noise_sd": 0.05}
ELASTIC = {"lr": 0.05, "binary_search_steps": 5, "max_iterations": 50, "initial_const": 1.0}

ATTACKS: dict[str, dict[str, Any]] = {
    "FGSM": {"eps": 0.12},
    "BIM": LINF,
    "RFGSM": LINF,
    "PGD": LINF,
    "EOTPGD": LINF,
    "FFGSM": {"eps": 0.12, "alpha": 0.15},
    "TPGD": LINF,
    "MIFGSM": LINF,
    "UPGD": LINF,
    "APGD Linf": {"norm": "Linf", "eps": 0.12, "steps": 20},
    "APGD L2": {"norm": "L2", "eps": 1.2, "steps": 20},
    "APGDT Linf": {"norm": "Linf", "eps": 0.12, "steps": 20},
    "APGDT L2": {"norm": "L2", "eps": 1.2, "steps": 20},
    "DIFGSM": {"eps": 0.12, "alpha": 0.01, "steps": 40},
    "TIFGSM": {**LINF, "len_kernel": 5},
    "Jitter": {**LINF, "steps": 20, "scale": 5},  # with its default of 10 even the bare attack leaves half correct
    "NIFGSM": LINF,
    "PGDRS": {"eps": 0.12, "alpha": 0.02, **SMOOTHED},
    "SINIFGSM": {**LINF, "eps": 0.15, "m": 3},
    "VMIFGSM": {**LINF, "N": 3},
    "VNIFGSM": {**LINF, "N": 3},
    "SPSA": {"eps": 0.2, "lr": 0.02, "nb_iter": 10, "nb_sample": 64, "max_batch_size": 16},
    "JSMA": {"theta": 1.0, "gamma": 0.05},
    "EADL1": ELASTIC,
    "EADEN": ELASTIC,
    "PIFGSM": {"max_epsilon": 0.12, "num_iter_set": 10},
    "PIFGSMPP": {"max_epsilon": 0.12, "num_iter_set": 10},
    "CW": {"c": 5, "steps": 60, "lr": 0.03},
    "PGDL2": {"eps": 1.2, "alpha": 0.3, "steps": 10},
    "DeepFool": {"steps": 20},
    "PGDRSL2": {"eps": 1.2, "alpha": 0.3, **SMOOTHED},
    "SparseFool": {"steps": 5},
    "OnePixel": {"pixels": 6, "steps": 10, "popsize": 60},
    "Pixle": {"max_iterations": 20, "restarts": 10, "x_dimensions": 5, "y_dimensions": 5},
    "FAB Linf": {"norm": "Linf", "eps": 0.12, "steps": 20},
    "FAB L2": {"norm": "L2", "eps": 1.2, "steps": 20},
    "Square Linf": {"norm": "Linf", "eps": 0.2, "n_queries": 300},
    "Square L2": {"norm": "L2", "eps": 2.0, "n_queries": 300},
    "AutoAttack": {"norm": "Linf", "eps": 0.12, "seed": 0},
    "MultiAttack": {"members": ["FGSM", "PGDL2"]},
    "LGV": {**LINF, "lr": 0.005, "epochs": 1, "nb_models_epoch": 2, "verbose": False},
}
"""Each attack that steers by the network, with its arguments (VANILA and GN make no query)."""


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits as noisy colour images, (1797, 3, 16, 16) in [0, 1]."""
    pixels, labels = load_digits(return_X_y=True)
    images = F.interpolate(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, scale_factor=2)
    noise = torch.rand(len(images), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return 0.1 + 0.7 * images + 0.15 * noise, torch.tensor(labels)


def trained_network(images: Tensor, labels: Tensor) -> nn.Module:
    """An ordinary, not a robust, classifier."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    criterion = AdversarialTrainer(model, "standard")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        for x, y in DataLoader(TensorDataset(images, labels), batch_size=50, shuffle=True):
            optimizer.zero_grad()
            criterion(x, y).backward()
            optimizer.step()
    return model.eval()


def built(name: str, model: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> Any:
    """The attack of one row."""
    arguments = ATTACKS[name]
    if name == "MultiAttack":
        return torchattacks.MultiAttack([built(member, model, loader) for member in arguments["members"]])
    if name == "LGV":
        return torchattacks.LGV(model, loader, **arguments)
    return getattr(torchattacks, name.split()[0])(model, **arguments)


def seeded(seed: int, attack: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """An attack's result under one seed for every generator that attacks draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return attack(*arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, int]]:
    """Measure, print the table, write it with the raw counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # for networks this small, waking other threads takes longer than the work
    torch.manual_seed(options.seed)
    images, labels = digits()
    model = trained_network(images[:1500], labels[:1500])
    with torch.no_grad():
        right = (model(images[1500:]).argmax(1) == labels[1500:]).nonzero().flatten()[: options.images] + 1500
    x, y = images[right], labels[right]
    salience = torch.rand(x.shape) < 0.5

    loader = DataLoader(TensorDataset(images[:1500], labels[:1500]), batch_size=50)

    def correct(batch: Tensor) -> int:
        with torch.no_grad():
            return int((model(batch).argmax(1) == y).sum())

    results = {}
    for name in tqdm(options.attacks, unit="attack"):
        attack = built(name, model, loader)
        bare = seeded(options.seed, attack, x, y)
        projected = seeded(options.seed, SIPWrapper(attack, salience), x, y)
        assert torch.equal(projected[salience], x[salience])
        late = torch.where(salience, x, bare)
        results[name] = {"bare": correct(bare), "late": correct(late), "projected": correct(projected)}
    lines = [f"| Attack | bare | masked late | projected at every step (of {len(x)} images) |", "|---|---|---|---|"]
    lines += [f"| {name} | {r['bare']} | {r['late']} | {r['projected']} |" for name, r in results.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        conditions = {"images": len(x), "salient": 0.5, "arguments": {name: ATTACKS[name] for name in options.attacks}}
        write_json(options.out / "result.json", run_record(options.seed) | conditions | {"correct": results})
        write_text(options.out / "table.md", text)
    return results


if __name__ == "__main__":
    main()
