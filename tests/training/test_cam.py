"""Class activation maps and PART's budgets, against maps made plainly, image by image."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sip_plugin import AdversarialTrainer
from sip_plugin.training import PART, Progress
from sip_plugin.training.cam import class_activation_maps
from tests.adapters.test_contract import everything, same

EPS, LOW = 8 / 255, 7 / 255
KINDS = ("gradcam", "xgradcam", "layercam")


@pytest.fixture
def batch(digits):
    return digits[0][1500:1512].clone(), digits[1][1500:1512].clone()


def plain_map(network, image, kind, split=4):
    """The map of one image from a Sequential's first ``split`` modules' output, (H, W) in [0, 1]."""
    activation = network[:split](image[None]).detach().requires_grad_()
    logits = network[split:](activation)[0]
    (gradient,) = torch.autograd.grad(logits[logits.argmax()], activation)
    total = torch.zeros(activation.shape[2:])
    for a, g in zip(activation.detach()[0], gradient[0], strict=True):
        if kind == "gradcam":
            total += g.mean() * a
        elif kind == "xgradcam":
            total += (g * a).sum() / a.sum() * a
        else:
            total += g.clamp(min=0) * a
    total = total.clamp(min=0)
    total = (total - total.min()) / (total.max() - total.min())
    return F.interpolate(total[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0]


def plain_budget(network, image, kind):
    cam = plain_map(network, image, kind).double()
    standardised = (cam - cam.mean()) / ((cam - cam.mean()) ** 2).mean().sqrt()
    return torch.where(standardised > 1, EPS, LOW).float()


def budgets(method, network, images):
    with torch.no_grad():
        return method.budget(network, images, EPS, Progress(5, 10))


@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_of_a_batch_are_those_of_its_images_alone(kind, network, batch):
    maps = class_activation_maps(network, batch[0], kind)
    assert maps.shape == (12, 1, 16, 16)
    plain = torch.stack([plain_map(network, image, kind) for image in batch[0]])
    assert torch.allclose(maps[:, 0], plain, atol=1e-5)
    assert maps.amax((1, 2, 3)).min() > 0.5
    assert maps.min() >= 0
    assert maps.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_fills_0_to_1_also_where_all_of_it_is_positive(kind, batch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.5)
    maps = class_activation_maps(network, batch[0], kind)
    assert torch.equal(maps.amin((1, 2, 3)), torch.zeros(12))
    assert torch.equal(maps.amax((1, 2, 3)), torch.ones(12))


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


def test_maps_leave_no_trace_and_need_no_trainable_weights(network, batch):
    network.requires_grad_(False)
    before = everything(network)
    maps = class_activation_maps(network, batch[0])
    same(before, everything(network))
    assert not maps.requires_grad
    assert not batch[0].requires_grad
    network[9].register_forward_hook(lambda *_: 1 / 0)
    before = everything(network)
    with pytest.raises(ZeroDivisionError):
        class_activation_maps(network, batch[0])
    same(before, everything(network))


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", "layer4"), ("densenet121", "features"), ("vgg11", "features")]
)
def test_the_last_convolution_stage_of_known_networks_is_found(name, layer):
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    network = getattr(models, name)(num_classes=4).eval()
    images = torch.rand(2, 3, 64, 64)
    found = class_activation_maps(network, images)
    assert torch.equal(found, class_activation_maps(network, images, layer=layer))
    assert not torch.equal(found, class_activation_maps(network, images, layer=_earlier(network)))


def _earlier(network):
    return next(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


def test_a_layer_with_one_position_is_no_map(batch):
    network = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 12), nn.Flatten(), nn.Linear(4, 10))
    found = class_activation_maps(network, batch[0])
    assert torch.equal(found, class_activation_maps(network, batch[0], layer="0"))


def test_a_constant_map_has_no_important_pixel(batch):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    nn.init.zeros_(network[0].weight)
    nn.init.ones_(network[0].bias)
    for kind in KINDS:
        assert (budgets(PART(kind), network, batch[0]) == torch.tensor(LOW)).all()


def test_a_dead_channel_has_no_part_in_xgradcam(network, batch):
    with torch.no_grad():
        network[3].weight[:4] = 0
        network[3].bias[:4] = 0
    alive = class_activation_maps(network, batch[0], "xgradcam")
    assert alive.isfinite().all()
    assert alive.amax((1, 2, 3)).min() > 0.5


@pytest.mark.parametrize(
    ("network", "layer", "says"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), None, "No convolution stage"),
        (nn.Sequential(nn.Conv2d(3, 2, 16), nn.Flatten(), nn.Linear(2, 10)), None, "PART"),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(392, 10)), "1", "more than one position"),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(392, 10)), "layer4", "It has: 0, 1, 2"),
    ],
)
def test_no_usable_layer_is_a_clear_error(network, layer, says, batch):
    trainer = AdversarialTrainer(network, PART(warmup=0, layer=layer))
    with pytest.raises(ValueError, match=says):
        trainer(*batch)


@pytest.mark.parametrize("layer", [None, "0"])
def test_what_follows_the_layer_may_write_into_its_output(layer, batch):
    maps = []
    for inplace in (False, True):
        torch.manual_seed(0)
        head = [nn.Flatten(), nn.Linear(4 * batch[0][0, 0].numel(), 10)]
        net = nn.Sequential(nn.Conv2d(batch[0].shape[1], 4, 3, padding=1), nn.ReLU(inplace=inplace), *head)
        maps.append(class_activation_maps(net.to(batch[0].dtype).eval(), batch[0], layer=layer))
    assert torch.equal(*maps)
