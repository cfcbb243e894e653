"""A training method of one's own is one small class; salience, schedules and checkpoints come with it.

python examples/own_method.py
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchattacks
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sip_plugin import AdversarialTrainer
from sip_plugin.salience import GradientSalience
from sip_plugin.training import Method

EPS, EPOCHS = 0.2, 8


class LogitPairing(Method):
    """Adversarial logit pairing (Kannan et al. 2018): the logits at the image and at the adversarial one are to agree.

    The search is Madry's, so only the loss is said here; ``start``, ``budget``, ``target`` and ``objective`` are for
    methods that search in another way.
    """

    name = "logit-pairing"

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight

    def loss(self, network: Callable[[Tensor], Tensor], images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        """Half of the cross-entropy on either kind of image, and the squared distance of the logits."""
        clean, attacked = network(images), network(adversarial)
        both = (F.cross_entropy(clean, labels) + F.cross_entropy(attacked, labels)) / 2
        return both + self.weight * F.mse_loss(attacked, clean)


def network() -> nn.Module:
    """A small classifier of 8×8 grey images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def train(model: nn.Module, criterion: AdversarialTrainer, x: Tensor, y: Tensor) -> None:
    """A plain loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for epoch in range(EPOCHS):
        criterion.set_epoch(epoch, EPOCHS)
        for rows in torch.randperm(len(x)).split(64):
            loss = criterion(x[rows], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        shown = {name: round(value.item(), 3) for name, value in criterion.metrics.items()}
        print(f"epoch {epoch}, last batch: {shown}")
    model.eval()


def main() -> dict[str, tuple[float, float]]:
    """Clean accuracy and accuracy under unrestricted PGD, without and with a salience map."""
    torch.manual_seed(0)
    pixels, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    test = x[1400:], y[1400:]

    paired, salient = network(), network()
    train(paired, AdversarialTrainer(paired, LogitPairing(), eps=EPS, alpha=EPS / 4), x[:1400], y[:1400])
    mask_fn = GradientSalience(paired)  # any method is salience-preserving with a map
    criterion = AdversarialTrainer(salient, LogitPairing(), salience=mask_fn, eps=EPS, alpha=EPS / 4)
    train(salient, criterion, x[:1400], y[:1400])

    results = {}
    for name, model in {"logit pairing": paired, "SIP logit pairing": salient}.items():
        adversarial = torchattacks.PGD(model, eps=EPS / 2, alpha=EPS / 8, steps=20)(*test)
        clean, robust = (
            (model(images).argmax(1) == test[1]).float().mean().item() for images in (test[0], adversarial)
        )
        results[name] = clean, robust
        print(f"{name}: clean {clean:.1%}, PGD-20 at eps = {EPS / 2}: {robust:.1%}")
    return results


if __name__ == "__main__":
    main()
