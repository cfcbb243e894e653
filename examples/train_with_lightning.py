"""SIP-AT in a LightningModule: the criterion is an attribute, and validation attacks inside Lightning's inference mode.

python examples/train_with_lightning.py
"""

from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sip_plugin import AdversarialTrainer

EPS = 0.2


class RobustClassifier(lightning.LightningModule):  # type: ignore[misc]
    """A small classifier of 8×8 grey images."""

    def __init__(self, steps: int = 7) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        # Any map will do; here what is bright (the strokes of the digits) stays as it is.
        self.criterion = AdversarialTrainer(
            self.network, "sip-at", salience=lambda images: images > 0.9, eps=EPS, alpha=EPS / 4, steps=steps
        )
        self.attack = AdversarialTrainer(self.network, "madry", eps=EPS / 2, alpha=EPS / 8, steps=10)

    def on_train_epoch_start(self) -> None:
        """Schedules go by the epoch."""
        self.criterion.set_epoch(self.current_epoch, self.trainer.max_epochs)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Was ``F.cross_entropy(self.network(images), labels)``."""
        loss = self.criterion(*batch)
        self.log("adversarial_accuracy", self.criterion.metrics["adversarial_accuracy"])
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """Clean and robust accuracy, under an attack that may change every element."""
        images, labels = batch
        for name, shown in {"clean": images, "robust": self.attack.perturb(images, labels)}.items():
            self.log(name, (self.network(shown).argmax(1) == labels).float().mean(), batch_size=len(images))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Epoch, method and random state go with Lightning's own."""
        checkpoint["criterion"] = self.criterion.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again."""
        self.criterion.load_state_dict(checkpoint["criterion"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As ever."""
        return torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9)


def main(epochs: int = 8, **trainer: Any) -> dict[str, float]:
    """Train, and give the last validation's accuracies."""
    lightning.seed_everything(0, verbose=False)
    pixels, targets = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets))
    train = DataLoader(torch.utils.data.Subset(data, range(1400)), batch_size=64, shuffle=True)
    test = DataLoader(torch.utils.data.Subset(data, range(1400, len(data))), batch_size=200)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    runner = lightning.Trainer(max_epochs=epochs, **{**settings, "enable_model_summary": False, **trainer})
    runner.fit(RobustClassifier(), train, test)
    results = {name: float(runner.callback_metrics[name]) for name in ("clean", "robust")}
    print(f"clean {results['clean']:.1%}, PGD-10 at eps = {EPS / 2}: {results['robust']:.1%}")
    return results


if __name__ == "__main__":
    main()
