"""Where a robust and a standard network look: their salience maps, how far they agree, and a picture.

python examples/look_at_salience.py                                       # scikit-learn's digits, a minute on one core
python examples/look_at_salience.py --dataset cifar10 --data-dir DIR      # CIFAR-10, add --download to fetch it
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where `examples` is

import torch
import torchattacks

from examples.quickstart import SETTINGS, ConvNet, load_cifar10, load_digits, train
from sip_plugin import AdversarialTrainer, SIPWrapper
from sip_plugin.salience import GradientSalience
from sip_plugin.salience.compare import SalienceComparison, compare_salience
from sip_plugin.salience.plots import plot_salience


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=SETTINGS, default="digits")
    parser.add_argument("--data-dir", help="folder that holds cifar-10-batches-py (cifar10 only)")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR-10 if it is not in --data-dir")
    parser.add_argument(
        "--unofficial-data",
        metavar="FOLDER",
        help="folder under --data-dir in CIFAR-10's layout that is not the archive",
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="train under autocast to bfloat16")
    parser.add_argument(
        "--out", type=Path, help="where to write the picture (default: out/look-at-salience-DATASET.png)"
    )
    options = parser.parse_args(arguments)
    if options.dataset == "cifar10" and options.data_dir is None:
        parser.error(
            "--dataset cifar10 needs --data-dir (the folder that holds cifar-10-batches-py); add --download to fetch it"
        )
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")
    options.out = options.out or Path("out") / f"look-at-salience-{options.dataset}.png"
    return options


def main(arguments: Sequence[str] | None = None) -> SalienceComparison:
    """Train two networks, compare their maps of the test images, draw the first six."""
    options = parse(arguments)
    settings = dataclasses.replace(SETTINGS[options.dataset], epochs=options.epochs)
    if options.dataset == "digits":
        data = load_digits()
    else:
        data = load_cifar10(options.data_dir, download=options.download, unofficial=options.unofficial_data)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)

    networks = {}
    for method in ("madry", "standard"):
        torch.manual_seed(options.seed)
        network = ConvNet(data.train[0].shape[1], data.classes, settings.width).to(options.device)
        criterion = AdversarialTrainer(network, method, eps=settings.eps, alpha=settings.alpha, steps=settings.steps)
        train(criterion, data, settings, device=options.device, bf16=options.bf16, title=method)
        networks[method] = network
    robust, standard = GradientSalience(networks["madry"]), GradientSalience(networks["standard"])

    found = SalienceComparison.join(
        compare_salience(robust, standard, x, scores=robust.magnitude, names=("Madry", "standard"))
        for x in data.test[0].to(options.device).split(250)
    )
    print(f"\nSalience maps of {data.source}, test images, from the gradients of two networks.\n\n{found}\n")

    images, labels = (part[:6].to(options.device) for part in data.test)
    attack = torchattacks.PGD(networks["standard"], eps=settings.eps, alpha=settings.alpha, steps=settings.steps)
    plot_salience(
        images,
        {"Madry": robust, "standard": standard},
        adversarial=attack(images, labels),
        projected={
            "Madry": SIPWrapper(attack, robust)(images, labels),
            "standard": SIPWrapper(attack, standard)(images, labels),
        },
        names=[f"class {label}" for label in labels.tolist()],
        path=options.out,
    )
    print(f"The first six of them as a picture: {options.out}")
    return found


if __name__ == "__main__":
    main()
