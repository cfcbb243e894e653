"""``trainer.metrics``: what they are, and that they cost no pass and no wait."""

import pytest
import torch
import torch.nn.functional as F

from sip_plugin import AdversarialTrainer
from sip_plugin.training import Method
from tests.training.table import STEPS, every_method

CLEAN, ADVERSARIAL = {"clean_loss", "clean_accuracy"}, {"adversarial_loss", "adversarial_accuracy"}
KNOWN = {
    "standard": CLEAN,
    "madry": ADVERSARIAL,
    "sip-at": ADVERSARIAL,
    "fat": ADVERSARIAL,
    "part": ADVERSARIAL,
    "trades": CLEAN | ADVERSARIAL,
    "mart": CLEAN | ADVERSARIAL,
}


@every_method
def test_they_are_what_the_losss_own_passes_say(row, network, images, labels, salience):
    labels[0] = (labels[0] + 1) % 10
    trainer = row.trainer(network, salience)
    assert trainer.metrics == {}
    torch.manual_seed(0)
    adversarial = trainer.perturb(images, labels)
    assert trainer.metrics == {}  # of calls, not of perturb
    torch.manual_seed(0)
    loss = trainer(images, labels)
    name = row.make().name
    searched = {"steps", "salient"} if row.make().adversarial else set()
    assert set(trainer.metrics) == {"loss"} | KNOWN[name] | searched
    assert all(value.dim() == 0 and not value.requires_grad for value in trainer.metrics.values())
    expected = {"loss": loss}
    for kind, x in {"clean": images, "adversarial": adversarial}.items():
        logits = network(x)
        expected[f"{kind}_loss"] = F.cross_entropy(logits, labels)
        expected[f"{kind}_accuracy"] = (logits.argmax(1) == labels).float().mean()
    expected["salient"] = salience.float().mean()
    for key in set(trainer.metrics) - {"steps"}:
        assert trainer.metrics[key].item() == pytest.approx(expected[key].item(), abs=1e-6), key
    if name == "fat":
        assert 1 <= trainer.metrics["steps"].item() < STEPS
    elif searched:
        assert trainer.metrics["steps"].item() == STEPS


def test_the_share_of_salient_elements_is_of_the_images_elements(network, images, labels):
    trainer = AdversarialTrainer(network, "madry", steps=1)
    trainer(images, labels)
    assert "salient" not in trainer.metrics
    half = torch.zeros(16, 16)
    half[:8] = 1
    for map_, share in ((half, 0.5), (half.bool()[None, None], 0.5), (half / 2, 0.25), (torch.ones(6, 1, 1, 1), 1.0)):
        trainer(images, labels, map_)
        assert trainer.metrics["salient"].item() == share


def test_an_output_that_is_no_logits_is_left_out(network, images, labels):
    class Pair(Method):
        def loss(self, network, images, adversarial, labels):
            logits, _ = network(adversarial)
            return F.cross_entropy(logits, labels)

        def objective(self, target):
            return lambda output: F.cross_entropy(output[0], target, reduction="sum")

    class TwoOutputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x):
            return self.inner(x), x

    trainer = AdversarialTrainer(TwoOutputs(), Pair(), steps=1)
    trainer(images, labels)
    assert set(trainer.metrics) == {"loss", "steps"}
