"""Each method's own formula, written out plainly beside it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sip_plugin import AdversarialTrainer
from sip_plugin.training import FAT, MART, PART, TRADES, Standard, TrainingProgress, rising

EPS, ALPHA, STEPS = 0.1, 0.03, 5
SEARCH = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


@pytest.fixture
def network(network):
    """In train mode, without Dropout, whose draws depend on how often the formula asks the network."""
    network[6] = nn.Identity()
    return network.train()


def plain_search(network, x, salience, loss):
    """From x + 0.001·N(0, 1) up the gradient of ``loss`` by signed steps, in eval mode, with a budget per element."""
    network.eval()
    budget = EPS * (1 - salience.to(x.dtype))
    lower, upper = (x - budget).clamp(min=0), (x + budget).clamp(max=1)
    point = x + 0.001 * torch.randn_like(x)
    if salience.any():
        point = torch.where(salience, x, point)
    for _ in range(STEPS):
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(point), point)
        point = torch.minimum(torch.maximum(point.detach() + ALPHA * gradient.sign(), lower), upper)
    network.train()
    return point


def plain_trades(network, x, y, salience, beta):
    """As published: f(x) anew at each step of the search, and twice in the loss."""
    kl = nn.KLDivLoss(reduction="sum")

    def divergence(point):
        return kl(F.log_softmax(network(point), dim=1), F.softmax(network(x), dim=1))

    adversarial = plain_search(network, x, salience, divergence)
    return F.cross_entropy(network(x), y) + beta * (1 / len(x)) * divergence(adversarial)


def plain_mart(network, x, y, salience, beta):
    adversarial = plain_search(network, x, salience, lambda point: F.cross_entropy(network(point), y))
    p = [F.softmax(network(z), dim=1) for z in (x, adversarial)]
    total = 0
    for clean, attacked, label in zip(*p, y.tolist(), strict=True):
        others = torch.cat([attacked[:label], attacked[label + 1 :]])
        bce = -torch.log(attacked[label]) - torch.log(1.0001 - others.max() + 1e-12)
        kl = (clean * (clean.log() - torch.log(attacked + 1e-12))).sum()
        total = total + bce + beta * kl * (1.0000001 - clean[label])
    return total / len(x)


@pytest.mark.parametrize("with_salience", [False, True])
@pytest.mark.parametrize(
    ("method", "plain", "dtype"),
    # MART's 1 − p of confident images has few digits left in float32, however it is written.
    [(TRADES, plain_trades, torch.float32), (MART, plain_mart, torch.float64)],
)
def test_value_and_gradients_are_the_plain_formulations(
    method, plain, dtype, with_salience, network, images, labels, salience
):
    network, images = network.to(dtype), images.to(dtype)
    labels[:2] = (labels[:2] + 1) % 10  # images that the network gets wrong, too
    plainly = copy.deepcopy(network)
    torch.manual_seed(0)
    expected = plain(plainly, images, labels, salience if with_salience else torch.zeros_like(salience), beta=4.0)
    expected.backward()
    torch.manual_seed(0)
    trainer = AdversarialTrainer(network, method(beta=4.0), salience=salience if with_salience else None, **SEARCH)
    loss = trainer(images, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for ours, theirs in zip(network.parameters(), plainly.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)
    assert max(p.grad.abs().max() for p in plainly.parameters()) > 0.1  # far above the tolerance


@pytest.mark.parametrize("method", [TRADES, MART])
def test_beta_zero_is_the_other_term_alone(method, network, images, labels):
    trainer = AdversarialTrainer(network.eval(), method(beta=0), **SEARCH)
    torch.manual_seed(0)
    adversarial = trainer.perturb(images, labels)
    torch.manual_seed(0)
    loss = trainer(images, labels)
    if method is TRADES:
        expected = F.cross_entropy(network(images), labels)
    else:
        p = F.softmax(network(adversarial), 1)
        others = p.masked_fill(F.one_hot(labels, 10).bool(), 0).amax(1)
        expected = F.cross_entropy(network(adversarial), labels) - torch.log(1.0001 - others).mean()
    assert torch.allclose(loss, expected, atol=1e-6)


def test_trades_starts_near_the_image_and_inside_the_set(network, images, labels, salience):
    images[0] = 0
    start = AdversarialTrainer(network, "trades", salience=salience, steps=0).perturb(images, labels)
    change = (start - images)[1:][~salience[1:]]
    assert change.std().item() == pytest.approx(0.001, rel=0.1)
    assert torch.equal(start[salience], images[salience])
    assert start.min() >= 0


def test_standard_trains_on_the_clean_images(network, images, labels):
    loss = AdversarialTrainer(network, Standard(), **SEARCH)(images, labels)
    assert torch.equal(loss, F.cross_entropy(network(images), labels))


@pytest.mark.parametrize(
    ("epoch", "epochs", "tau"),
    [(0, 120, 0), (49, 120, 0), (50, 120, 1), (89, 120, 1), (90, 120, 2), (119, 120, 2), (4, 10, 0), (5, 10, 1)],
)
def test_fats_tau_grows_after_50_and_90_of_120_epochs(epoch, epochs, tau):
    assert FAT().patience(TrainingProgress(epoch, epochs)) == tau
    assert FAT(tau=7).patience(TrainingProgress(epoch, epochs)) == 7


def test_a_rising_tau_has_each_value_over_an_equal_part_of_training():
    method = FAT(tau=rising(0, 1, 3, None))
    assert [method.patience(TrainingProgress(epoch, 12)) for epoch in range(12)] == [0] * 3 + [1] * 3 + [3] * 3 + [
        None
    ] * 3
    assert [method.patience(TrainingProgress(epoch, 2)) for epoch in range(2)] == [0, 3]
    assert method.tau(1.0) is None  # as whoever draws the schedule asks
    assert "rising(0, 1, 3, None)" in repr(method)


@pytest.mark.parametrize("tau", [-1, 0.5, "1"])
def test_what_a_schedule_of_tau_gives_is_checked(tau, network, images, labels):
    trainer = AdversarialTrainer(network, FAT(tau=lambda share: tau))
    trainer.set_epoch(0, 1)
    with pytest.raises(ValueError, match="tau must be an integer from 0"):
        trainer(images, labels)


@pytest.mark.parametrize("method", ["fat", "part", FAT(tau=rising(0, None))])
def test_a_schedule_needs_the_number_of_epochs(method, network, images, labels):
    trainer = AdversarialTrainer(network, method, steps=1)
    with pytest.raises(ValueError, match=r"set_epoch\(epoch, epochs\)"):
        trainer(images, labels)
    trainer.set_epoch(0, 10)
    assert trainer(images, labels).isfinite()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TRADES(beta=-1), "beta"),
        (lambda: MART(beta=float("nan")), "beta"),
        (lambda: FAT(tau=1.5), "tau"),
        (lambda: FAT(tau=-1), "tau"),
        (lambda: rising(0, -1), "tau"),
        (lambda: FAT(omega=-0.1), "omega"),
        (lambda: PART(cam="cam"), "gradcam"),
        (lambda: PART(eps_low=-1), "eps_low"),
        (lambda: PART(warmup=20), "share"),
    ],
)
def test_bad_parameters_are_refused_at_once(make, says):
    with pytest.raises(ValueError, match=says):
        make()
