"""Compare and draw the salience maps of a robust and of a standard network. On scikit-learn's digits, a minute on one core.

python examples/look_at_salience.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where `examples` is

import torch
import torchattacks

from examples.quickstart import BUDGET, load_digits, network, train
from sip_plugin import AdversarialTrainer, SIPWrapper
from sip_plugin.salience import GradientSalience
from sip_plugin.salience.compare import SalienceComparison, compare_salience
from sip_plugin.salience.plots import plot_salience


def main(arguments: Sequence[str] | None = None) -> SalienceComparison:
    """Train two networks, compare their maps of the test images, draw the first six."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/look-at-salience-digits.png"), help="file of the picture")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    x, y, x_test, y_test = load_digits()

    networks = {}
    for method in ("madry", "standard"):
        torch.manual_seed(options.seed)
        networks[method] = network()
        train(AdversarialTrainer(networks[method], method, **BUDGET), x, y, options.epochs, method)
    robust, standard = GradientSalience(networks["madry"]), GradientSalience(networks["standard"])

    found = SalienceComparison.join(
        compare_salience(robust, standard, images, scores=robust.magnitude, names=("Madry", "standard"))
        for images in x_test.split(250)
    )
    print(f"\nSalience maps of the test images, from the gradients of two networks.\n\n{found}\n")

    images, labels = x_test[:6], y_test[:6]
    attack = torchattacks.PGD(networks["standard"], **BUDGET)
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
