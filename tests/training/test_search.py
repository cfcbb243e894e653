"""The search with images that leave the batch early (FAT)."""

import pytest
import torch
import torch.nn.functional as F

from sip_plugin import AdversarialTrainer
from sip_plugin.training import FAT, rising

SEARCH = {"eps": 0.3, "alpha": 0.02, "steps": 6}


@pytest.fixture
def network(network):
    """In float64, in which torch's convolutions on the CPU give an image the same bits in a batch of any size."""
    return network.double()


@pytest.fixture
def batch(digits):
    return digits[0][1500:1530].double(), digits[1][1500:1530]


def friendly(network, x, y, tau, salience=None):
    """Early-stopped PGD of one image, as FAT's Algorithm 1 says it: the image and how many iterations it took."""
    budget = 0.3 if salience is None else 0.3 * (1 - salience.double())
    lower, upper = (x - budget).clamp(min=0), (x + budget).clamp(max=1)
    point = x.clone()
    for iteration in range(SEARCH["steps"]):
        point = point.detach().requires_grad_()
        logits = network(point)
        if logits.argmax() != y:
            if tau == 0:
                return point.detach(), iteration + 1
            tau -= 1
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), point)
        point = torch.minimum(torch.maximum(point.detach() + SEARCH["alpha"] * gradient.sign(), lower), upper)
    return point, SEARCH["steps"]


@pytest.mark.parametrize("with_salience", [False, True])
@pytest.mark.parametrize("tau", [0, 1, 2])
def test_every_image_is_that_of_an_early_stopped_loop_over_single_images(tau, with_salience, network, batch):
    x, y = batch
    maps = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3 if with_salience else None
    alone = [
        friendly(network, x[i : i + 1], y[i : i + 1], tau, None if maps is None else maps[i : i + 1])
        for i in range(len(x))
    ]
    used = [steps for _, steps in alone]
    assert len(set(used)) >= 3  # they do leave the batch at different steps, and not all before the last one
    assert max(used) == SEARCH["steps"]
    rows = []
    network.register_forward_hook(lambda module, given, output: rows.append(len(given[0])))
    method = FAT(tau=tau, omega=0, random_start=False)
    trainer = AdversarialTrainer(network, method, salience=maps, **SEARCH)
    adversarial = trainer.perturb(x, y)
    assert torch.equal(adversarial, torch.cat([image for image, _ in alone]))
    assert sum(rows) == sum(used)
    assert rows == sorted(rows, reverse=True)
    trainer(x, y)
    assert trainer.metrics["steps"].item() == pytest.approx(sum(used) / len(used))


def test_images_that_are_wrong_from_the_start_are_done_at_once(network, batch):
    x, _ = batch
    wrong = (network(x).argmax(1) + 1) % 10
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    trainer = AdversarialTrainer(network, FAT(tau=0, random_start=False), **SEARCH)
    adversarial = trainer.perturb(x, wrong)
    assert len(calls) == 1
    assert torch.equal(adversarial, x)
    adversarial.zero_()
    assert x.abs().sum() > 0  # a copy


def test_with_no_end_to_its_patience_it_is_madrys_search(network, batch):
    x, y = batch
    results = []
    for method in ("madry", FAT(tau=100, omega=0)):
        torch.manual_seed(0)
        results.append(AdversarialTrainer(network, method, **SEARCH).perturb(x, y))
    assert torch.equal(*results)


def test_a_rising_tau_searches_longer_and_in_the_end_fully(network, batch):
    scheduled = AdversarialTrainer(network, FAT(tau=rising(0, 1, None)), **SEARCH)
    passes = []
    for epoch, tau in enumerate((0, 1, 100)):
        scheduled.set_epoch(epoch, 3)
        found = []
        for trainer in (scheduled, AdversarialTrainer(network, FAT(tau=tau), **SEARCH)):
            torch.manual_seed(epoch)
            found.append(trainer.perturb(*batch))
        assert torch.equal(*found)
        scheduled(*batch)
        passes.append(scheduled.metrics["steps"].item())
    assert passes[0] < passes[1] < passes[2] == SEARCH["steps"]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_each_step_adds_noise_of_omega(norm, network, batch, salience):
    x, y = batch
    size = 1.0 if norm == "Linf" else 100.0  # so that the projection cuts nothing but [0, 1]
    moved = []
    for omega in (0, 0.01):
        trainer = AdversarialTrainer(
            network,
            FAT(tau=9, omega=omega, random_start=False),
            salience=salience[:1],
            norm=norm,
            eps=size,
            alpha=0.05,
            steps=1,
        )
        moved.append(trainer.perturb(x, y))
    noise = moved[1] - moved[0]
    inside = (moved[0] > 0.05) & (moved[0] < 0.95) & ~salience[:1]
    assert noise[inside].std().item() == pytest.approx(0.01, rel=0.05)
    assert abs(noise[inside].mean().item()) < 0.001
    assert not noise[salience[:1].expand_as(noise)].any()


def test_the_device_is_not_asked_before_an_image_can_be_done(network, batch, monkeypatch):
    asked = []
    nonzero = torch.Tensor.nonzero
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda self: asked.append(1) or nonzero(self))
    AdversarialTrainer(network, FAT(tau=4, random_start=False), **SEARCH).perturb(*batch)
    assert len(asked) == SEARCH["steps"] - 4
