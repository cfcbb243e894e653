"""AdversarialTrainer: what its loss and its adversarial images are, and what it leaves alone."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import nn

from sip_plugin import AdversarialTrainer
from sip_plugin.salience import GradientSalience
from sip_plugin.training import PART, SIPAT, TRADES, Madry, Method, Standard
from tests.adapters.test_contract import everything, same

SHORT = {"eps": 0.1, "alpha": 0.03, "steps": 4}


def plain_search(network, x, y, budget, *, alpha, steps, random_start):
    """Signed projected gradient ascent with a budget per element, as plainly as possible."""
    lower, upper = torch.clamp(x - budget, min=0), torch.clamp(x + budget, max=1)
    point = x
    if random_start:
        point = torch.clamp(torch.empty_like(x).uniform_(-1, 1) * budget + x, min=lower, max=upper)
    for _ in range(steps):
        point = point.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(network(point), y, reduction="sum"), point)
        point = torch.clamp(point.detach() + alpha * g.sign(), min=lower, max=upper)
    return point


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("method", ["madry", "sip-at"])
def test_the_adversarial_images_equal_a_plain_search(method, random_start, network, images, labels, salience):
    trainer = AdversarialTrainer(network, method, random_start=random_start, **SHORT)
    mask = salience if method == "sip-at" else None
    budget = 0.1 * (1 - salience.float()) if method == "sip-at" else torch.full_like(images, 0.1)
    torch.manual_seed(0)
    expected = plain_search(network, images, labels, budget, alpha=0.03, steps=4, random_start=random_start)
    torch.manual_seed(0)
    assert torch.equal(trainer.perturb(images, labels, mask), expected)


def test_without_a_start_madry_is_torchattacks_pgd(network, images, labels):
    ours = AdversarialTrainer(network, "madry", random_start=False, **SHORT).perturb(images, labels)
    theirs = torchattacks.PGD(network, random_start=False, **SHORT)(images, labels)
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_salient_elements_stay_and_the_ball_and_01_hold(norm, network, images, labels, salience):
    eps = 0.1 if norm == "Linf" else 1.0
    trainer = AdversarialTrainer(network, "sip-at", salience=salience, norm=norm, eps=eps, alpha=eps / 3, steps=4)
    change = trainer.perturb(images, labels) - images
    assert (change[salience] == 0).all()
    assert (change[~salience] != 0).any()
    size = change.abs().amax() if norm == "Linf" else change.flatten(1).norm(dim=1).max()
    assert 0.5 * eps < size <= eps * (1 + 1e-5)
    assert (images + change).min() >= 0
    assert (images + change).max() <= 1


def test_a_soft_map_scales_the_budget(network, images, labels):
    trainer = AdversarialTrainer(network, "sip-at", salience=torch.full((16, 16), 0.75), **SHORT)
    assert (trainer.perturb(images, labels) - images).abs().max().item() == pytest.approx(0.025, abs=1e-6)


@pytest.mark.parametrize("method", ["standard", "madry", "sip-at"])
def test_the_loss_is_the_cross_entropy_at_those_images_in_the_loops_own_mode(method, network, images, labels, salience):
    network[6] = nn.Identity()  # without Dropout the loss's own pass draws nothing
    network.train()
    trainer = AdversarialTrainer(network, method, salience=salience, **SHORT)
    torch.manual_seed(0)
    adversarial = trainer.perturb(images, labels)
    assert torch.equal(adversarial, images) == (method == "standard")
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    torch.manual_seed(0)
    loss = trainer(images, labels)
    after = {name: buffer.clone() for name, buffer in network.named_buffers()}
    assert int(after["1.num_batches_tracked"]) == int(before["1.num_batches_tracked"]) + 1  # one pass in train mode
    ours = torch.autograd.grad(loss, list(network.parameters()))
    network.load_state_dict(network.state_dict() | before)
    expected = F.cross_entropy(network(adversarial), labels)
    assert torch.equal(loss, expected)
    theirs = torch.autograd.grad(expected, list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_nor_does_a_map_that_fails(network, images, labels):
    def mask_fn(x):
        raise RuntimeError("no map")

    network.train()
    with pytest.raises(RuntimeError, match="no map"):
        AdversarialTrainer(network, "sip-at", salience=mask_fn)(images, labels)
    assert all(module.training for module in network.modules())


def test_every_parameter_gets_its_gradient_under_autocast(network, images, labels, salience):
    """Weights cast during the search must not stay in autocast's cache without their graph."""
    trainer = AdversarialTrainer(network, "sip-at", salience=GradientSalience(network), **SHORT)
    with torch.autocast("cpu", torch.bfloat16):
        loss = trainer(images, labels)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("compiled", [False, True])
def test_in_distributed_data_parallel_only_the_losss_own_pass_is_reduced(
    compiled, tmp_path, network, images, labels, salience
):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(network)
        calls = []
        parallel.register_forward_hook(lambda *_: calls.append(1))
        model = torch.compile(parallel, backend="eager") if compiled else parallel
        trainer = AdversarialTrainer(model, "sip-at", salience=salience, random_start=False, **SHORT)
        trainer.perturb(images, labels)
        assert not calls
        trainer(images, labels).backward()
        assert len(calls) == 1
        ours = [p.grad.clone() for p in network.parameters()]
        network.zero_grad()
        AdversarialTrainer(network, "sip-at", salience=salience, random_start=False, **SHORT)(images, labels).backward()
        assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in zip(ours, network.parameters(), strict=True))
    finally:
        torch.distributed.destroy_process_group()


def test_a_map_with_the_batch_goes_before_the_trainers_own(network, images, labels):
    trainer = AdversarialTrainer(network, "sip-at", salience=torch.zeros(16, 16), **SHORT)
    assert torch.equal(trainer.perturb(images, labels, mask=torch.ones(16, 16)), images)


def test_madry_with_a_map_is_sip_at(network, images, labels, salience):
    results = []
    for method in ("madry", "sip-at"):
        torch.manual_seed(0)
        results.append(AdversarialTrainer(network, method, salience=salience, **SHORT).perturb(images, labels))
    assert torch.equal(*results)


@pytest.mark.parametrize("method", [Standard(), Madry(), SIPAT()])
def test_a_method_object_is_as_good_as_its_name(method, network):
    assert AdversarialTrainer(network, method).method is method
    assert type(AdversarialTrainer(network, method.name).method) is type(method)


def test_a_users_own_method_is_one_small_class(network, images, labels):
    class Margin(Method):
        name = "margin"

        def objective(self, labels):
            return lambda logits: (logits.logsumexp(1) - logits.gather(1, labels[:, None]).squeeze(1)).sum()

        def loss(self, network, images, adversarial, labels):
            return F.cross_entropy(network(images), labels) + F.cross_entropy(network(adversarial), labels)

    trainer = AdversarialTrainer(network, Margin(), random_start=False, **SHORT)
    adversarial = trainer.perturb(images, labels)
    expected = F.cross_entropy(network(images), labels) + F.cross_entropy(network(adversarial), labels)
    assert torch.allclose(trainer(images, labels), expected)


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"method": "sipat"}, ValueError, "standard, madry, trades, fat, part, mart, sip-at"),
        ({"method": SIPAT}, ValueError, "method"),
        ({"salience": "map.png"}, TypeError, "salience"),
        ({"eps": 8}, ValueError, "8/255"),
        ({"eps": -1.0}, ValueError, "negative"),
        ({"alpha": math.nan}, ValueError, "alpha"),
        ({"steps": 2.5}, ValueError, "steps"),
        ({"steps": -1}, ValueError, "steps"),
        ({"norm": "l2"}, ValueError, "Linf"),
    ],
)
def test_bad_settings_are_refused_at_once(arguments, kind, says, network):
    with pytest.raises(kind, match=says):
        AdversarialTrainer(**{"model": network, "method": "sip-at", **arguments})


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (lambda x, y, m: (x * 255, y, m), ValueError, r"\[0, 1\]"),
        (lambda x, y, m: (x * math.nan, y, m), ValueError, "finite"),
        (lambda x, y, m: (x, y[:3], m), ValueError, "one class index per image"),
        (lambda x, y, m: (x, y.float(), m), TypeError, "int64"),
        (lambda x, y, m: (x, y, m[:3]), ValueError, "got shape"),
        (lambda x, y, m: (x, y, m[0]), ValueError, "ambiguous"),
        (lambda x, y, m: (x, y, m * math.nan), ValueError, "NaN"),
        (lambda x, y, m: (x, y, None), ValueError, "needs a salience map"),
    ],
)
@pytest.mark.parametrize("call", ["__call__", "perturb"])
def test_bad_batches_are_a_clear_error(change, kind, says, call, network, images, labels, salience):
    trainer = AdversarialTrainer(network, "sip-at")
    with pytest.raises(kind, match=says):
        getattr(trainer, call)(*change(images, labels, salience))


def test_the_epoch_is_kept_and_checked(network):
    trainer = AdversarialTrainer(network, "madry")
    trainer.set_epoch(3, 10)
    trainer.set_epoch(4)
    assert (trainer.epoch, trainer.epochs) == (4, 10)
    for bad in ((-1,), (10, 10)):
        with pytest.raises(ValueError, match="epoch"):
            trainer.set_epoch(*bad)


def test_the_repr_shows_the_settings(network, salience):
    shown = repr(AdversarialTrainer(network, "sip-at", salience=salience))
    assert "SIPAT()" in shown
    assert "Tensor of shape (6, 3, 16, 16)" in shown


@pytest.fixture(scope="module")
def robust_accuracy(digits):
    """Trains a network with a method; it and its accuracy under PGD."""
    from tests.conftest import small_network

    x, y = digits[0][:800], digits[1][:800]
    x_test, y_test = digits[0][1200:1500], digits[1][1200:1500]

    def trained(method, mask_fn=None):
        torch.manual_seed(0)
        model = small_network().train()
        criterion = AdversarialTrainer(model, method, salience=mask_fn, eps=0.1, alpha=0.04, steps=4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for epoch in range(6):
            criterion.set_epoch(epoch, 6)
            for rows in torch.randperm(len(x)).split(50):
                optimizer.zero_grad()
                criterion(x[rows], y[rows]).backward()
                optimizer.step()
        model.eval()
        adversarial = torchattacks.PGD(model, eps=0.1, alpha=0.02, steps=10)(x_test, y_test)
        return model, (model(adversarial).argmax(1) == y_test).float().mean().item()

    return trained


@pytest.fixture(scope="module")
def standard_and_madry(robust_accuracy):
    return robust_accuracy("standard"), robust_accuracy("madry")


@pytest.mark.slow
@pytest.mark.xdist_group("trained networks")  # the first two are trained once for all
@pytest.mark.parametrize(
    ("method", "salient"),
    [("sip-at", True), (TRADES(beta=2.0), False), ("fat", True), ("mart", False), (PART(eps_low=0.07), True)],
    ids=str,
)
def test_a_trained_network_is_more_robust_than_a_standard_one(method, salient, robust_accuracy, standard_and_madry):
    (_, standard), (teacher, madry) = standard_and_madry
    _, robust = robust_accuracy(method, GradientSalience(teacher) if salient else None)
    assert min(robust, madry) > standard + 0.1


def test_a_mask_function_may_compute_its_own_gradient(network, images, labels):
    def mask_fn(x, y):
        point = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(point), y), point)
        return gradient.abs() > gradient.abs().median()

    trainer = AdversarialTrainer(network, "sip-at", salience=mask_fn, **SHORT)
    maps = mask_fn(images, labels)
    adversarial = trainer.perturb(images, labels)
    assert torch.equal(adversarial[maps], images[maps])


def test_the_result_is_never_the_callers_own_memory(network, images, labels):
    for trainer in (
        AdversarialTrainer(network, "standard"),
        AdversarialTrainer(network, "madry", steps=0, random_start=False),
    ):
        before = images.clone()
        trainer.perturb(images, labels).zero_()
        assert torch.equal(images, before)
        assert not images.requires_grad


def test_numbers_of_numpy_are_numbers(network):
    import numpy as np

    trainer = AdversarialTrainer(network, "madry", eps=np.float32(0.1), alpha=np.float64(0.02), steps=np.int64(3))
    assert (type(trainer.eps), type(trainer.steps)) == (float, int)
    GradientSalience(network, np.float32(0.5))


def test_a_mask_function_that_uses_the_network_in_training_leaves_no_trace(network, images, labels):
    network.train()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = everything(network)

    def mask_fn(x, y):
        network.eval()
        x.requires_grad_()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        return x.grad.abs() > x.grad.abs().median()

    AdversarialTrainer(network, "sip-at", salience=mask_fn, steps=1).perturb(images, labels)
    same(before, everything(network))


def test_a_zero_gradient_in_l2_moves_nothing_however_large_the_step(images, labels):
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    nn.init.zeros_(network[1].weight)
    trainer = AdversarialTrainer(network, "madry", norm="L2", eps=50.0, alpha=20.0, steps=2, random_start=False)
    assert torch.equal(trainer.perturb(images, labels), images)


@pytest.mark.parametrize("arguments", [(0.5,), (5,), (0, 0)])
def test_an_epoch_is_an_integer_below_their_number(arguments, network):
    trainer = AdversarialTrainer(network, "madry")
    trainer.set_epoch(np.int64(1), np.int64(3))
    assert type(trainer.state_dict()["epoch"]) is int
    with pytest.raises(ValueError, match="epoch"):
        trainer.set_epoch(*arguments)
    assert trainer.epoch == 1


class WritesIntoItsInput(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        x -= 0.1
        return self.network(x)


class Subtracts(WritesIntoItsInput):
    def forward(self, x):
        return self.network(x - 0.1)


@pytest.mark.parametrize("method", ["standard", "madry", "trades", "fat", PART(warmup=0), "mart", "sip-at"], ids=str)
def test_a_network_that_writes_into_its_input_changes_nobodys_images(method, network, images, labels, salience):
    before, losses = images.clone(), []
    for kind in (WritesIntoItsInput, Subtracts):
        torch.manual_seed(0)
        trainer = AdversarialTrainer(kind(network), method, salience=salience, **SHORT)
        trainer.set_epoch(0, 1)
        losses.append(trainer(images, labels))
        assert torch.equal(images, before)
    assert torch.equal(*losses)


@pytest.mark.parametrize("method", ["standard", "madry", "trades", "fat", PART(warmup=0), "mart"], ids=str)
def test_images_may_be_of_any_memory_layout(method, network, images, labels):
    other = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    trainer = AdversarialTrainer(network, method, random_start=method == "trades", **SHORT)
    trainer.set_epoch(0, 1)
    losses = [trainer(x, labels) for x in (images, other)]
    if method in ("standard", "madry"):  # the others draw random numbers, in the order of memory
        assert torch.allclose(*losses, rtol=1e-4)
    assert all(loss.isfinite() for loss in losses)


@pytest.mark.parametrize("method", ["standard", "madry", "trades", "fat", "mart"])
def test_labels_that_the_network_has_no_logit_for_are_named(method, network, images, labels):
    trainer = AdversarialTrainer(network, method, **SHORT)
    trainer.set_epoch(0, 1)
    with pytest.raises(ValueError, match=r"below 10.*got 10"):
        trainer(images, labels.clamp(min=10))


def test_a_network_without_a_gradient_is_an_error(images, labels):
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    blind = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    with pytest.raises(ValueError, match="no gradient with respect to the image"):
        AdversarialTrainer(blind, "madry", **SHORT)(images, labels)
