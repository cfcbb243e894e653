"""SIP-AT with ART's own trainer: a wrapped attack goes wherever ART takes an attack.

python examples/art_trainer.py
"""

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainer
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import nn

from sip_plugin import SIPWrapper
from sip_plugin.salience import GradientSalience

EPS = 0.2


def classifier() -> PyTorchClassifier:
    """A small network for 8×8 grey images, with its optimizer."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    return PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.002),
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def main(epochs: int = 15) -> dict[str, tuple[float, float]]:
    """Clean accuracy and accuracy under unrestricted PGD: standard, Madry and SIP-AT training."""
    torch.manual_seed(0)
    np.random.seed(0)
    pixels, targets = load_digits(return_X_y=True)
    x, y = (pixels / 16).reshape(-1, 1, 8, 8).astype(np.float32), targets
    train, test = (x[:1400], np.eye(10, dtype=np.float32)[y[:1400]]), (x[1400:], y[1400:])
    search = {"eps": EPS, "eps_step": EPS / 4, "max_iter": 7, "num_random_init": 1, "batch_size": 64, "verbose": False}

    standard = classifier()
    standard.fit(*train, batch_size=64, nb_epochs=epochs)

    madry = classifier()
    attack = ProjectedGradientDescent(madry, **search)
    AdversarialTrainer(madry, attacks=attack, ratio=1.0).fit(*train, batch_size=64, nb_epochs=epochs)

    sip_at = classifier()
    teacher = GradientSalience(madry.model)  # what the robust network looks at stays as it is
    wrapped = SIPWrapper(ProjectedGradientDescent(sip_at, **search), teacher)
    AdversarialTrainer(sip_at, attacks=wrapped, ratio=1.0).fit(*train, batch_size=64, nb_epochs=epochs)

    results = {}
    for name, trained in {"standard": standard, "Madry": madry, "SIP-AT": sip_at}.items():
        evaluation = ProjectedGradientDescent(trained, eps=EPS / 2, eps_step=EPS / 8, max_iter=20, verbose=False)
        adversarial = evaluation.generate(*test)
        clean, robust = (float((trained.predict(z).argmax(1) == test[1]).mean()) for z in (test[0], adversarial))
        results[name] = clean, robust
        print(f"{name}: clean {clean:.1%}, PGD-20 at eps = {EPS / 2}: {robust:.1%}")
    return results


if __name__ == "__main__":
    main()
