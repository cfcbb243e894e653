"""PART's budgets, against those of maps made plainly, image by image."""

import pytest
import torch
from torch import nn

from sip_plugin import AdversarialTrainer
from sip_plugin.training import PART, TrainingProgress
from tests.test_cam import KINDS, plain_map

EPS, LOW = 8 / 255, 7 / 255


@pytest.fixture
def batch(digits):
    return digits[0][1500:1512].clone(), digits[1][1500:1512].clone()


def plain_budget(network, image, kind):
    cam = plain_map(network, image, kind).double()
    standardised = (cam - cam.mean()) / ((cam - cam.mean()) ** 2).mean().sqrt()
    return torch.where(standardised > 1, EPS, LOW).float()


def budgets(method, network, images):
    with torch.no_grad():
        return method.budget(network, images, EPS, TrainingProgress(5, 10))


@pytest.mark.parametrize("kind", KINDS)
def test_parts_budgets_are_those_of_a_plain_cam(kind, network, batch):
    found = budgets(PART(kind), network, batch[0])
    plain = torch.stack([plain_budget(network, image, kind) for image in batch[0]])
    assert torch.equal(found[:, 0], plain)
    important = (plain == EPS).flatten(1).float().mean(1)
    assert important.min() > 0
    assert important.max() < 0.5


def test_every_image_has_its_own_map_under_shuffling_and_augmentation(network, batch):
    images = batch[0]
    before = budgets(PART(), network, images)
    assert len({tuple(budget.flatten().tolist()) for budget in before}) > 8
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    assert torch.equal(budgets(PART(), network, images[order]), before[order])
    moved = torch.where(torch.arange(12)[:, None, None, None] % 2 == 0, images.roll(3, dims=3), images)
    plain = torch.stack([plain_budget(network, image, "gradcam") for image in moved])
    assert torch.equal(budgets(PART(), network, moved)[:, 0], plain)
    assert not torch.equal(plain, before[:, 0])


def test_the_search_keeps_to_those_budgets(network, batch):
    x, y = batch
    trainer = AdversarialTrainer(network, PART(eps_low=0.01), eps=0.1, alpha=0.03, steps=6)
    trainer.set_epoch(5, 10)
    change = (trainer.perturb(x, y) - x).abs()
    low = (budgets(PART(eps_low=0.01), network, x) < EPS).expand_as(change)
    assert change[low].max().item() == pytest.approx(0.01, abs=1e-6)
    assert change[~low].max().item() == pytest.approx(0.1, abs=1e-6)


def test_with_a_map_the_smaller_budget_wins(network, batch):
    x, y = batch
    soft = torch.full_like(x, 0.5)
    soft[:, :, :, :4] = 1
    soft[:, :, :, 12:] = 0
    trainer = AdversarialTrainer(network, PART(eps_low=0.06), salience=soft, eps=0.1, alpha=0.03, steps=6)
    trainer.set_epoch(5, 10)
    change = (trainer.perturb(x, y) - x).abs()
    low = (budgets(PART(eps_low=0.01), network, x) < EPS).expand_as(change)
    allowed = torch.minimum(0.1 * (1 - soft), torch.where(low, 0.06, 0.1))
    assert allowed.unique().tolist() == pytest.approx([0.0, 0.05, 0.06, 0.1])
    assert (change <= allowed + 1e-6).all()
    for value in allowed.unique():
        assert change[allowed == value].max().item() == pytest.approx(value.item(), abs=1e-6)


def test_the_first_epochs_are_madrys(network, batch):
    results = {}
    for method, epoch in (("madry", 0), (PART(warmup=0.25), 4), (PART(warmup=0.25), 5), (PART(warmup=0), 0)):
        trainer = AdversarialTrainer(network, method)
        trainer.set_epoch(epoch, 20)
        torch.manual_seed(0)
        results[str(method), epoch] = trainer.perturb(*batch)
    madry, warming, warm, without = results.values()
    assert torch.equal(warming, madry)
    assert not torch.equal(warm, madry)
    assert torch.equal(warm, without)


def test_without_warm_up_no_epochs_are_needed(network, batch):
    assert AdversarialTrainer(network, PART(warmup=0), steps=1)(*batch).isfinite()


def test_a_low_budget_above_eps_is_eps(network, batch):
    torch.manual_seed(0)
    madry = AdversarialTrainer(network, "madry", eps=0.01).perturb(*batch)
    torch.manual_seed(0)
    assert torch.equal(AdversarialTrainer(network, PART(eps_low=0.02, warmup=0), eps=0.01).perturb(*batch), madry)


def test_a_constant_map_has_no_important_pixel(batch):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    nn.init.zeros_(network[0].weight)
    nn.init.ones_(network[0].bias)
    for kind in KINDS:
        assert (budgets(PART(kind), network, batch[0]) == torch.tensor(LOW)).all()


@pytest.mark.parametrize(
    ("network", "layer", "says"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), None, "layer="),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(392, 10)), "layer4", "nearest are 2, 1, 0"),
    ],
)
def test_no_usable_layer_is_a_clear_error(network, layer, says, batch):
    trainer = AdversarialTrainer(network, PART(warmup=0, layer=layer))
    with pytest.raises(ValueError, match=says):
        trainer(*batch)
