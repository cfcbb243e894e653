"""What holds for every training method, with salience, and in every kind of loop."""

import copy

import pytest
import torch
from torch import nn

from sip_plugin.salience import GradientSalience
from sip_plugin.training import AdversarialTrainer
from sip_plugin.training.methods import METHODS
from tests.adapters.test_contract import everything, same
from tests.training.table import EPS, ROWS, STEPS, every_method, every_search

norms = pytest.mark.parametrize("norm", ["Linf", "L2"])


def settings(norm):
    return {"norm": norm} if norm == "Linf" else {"norm": norm, "eps": 1.0, "alpha": 0.3}


def perturbed(trainer, images, labels, seed=0, **arguments):
    torch.manual_seed(seed)
    return trainer.perturb(images, labels, **arguments)


def test_every_method_is_in_the_table():
    assert {str(row) for row in ROWS} == set(METHODS)


@norms
@every_search
def test_no_salient_element_changes_and_the_ball_and_01_hold(row, norm, network, images, labels, salience):
    images[0, :, :8] = 0  # where a step would leave [0, 1]
    images[1, :, :8] = 1
    trainer = row.trainer(network, salience, **settings(norm))
    adversarial = perturbed(trainer, images, labels)
    assert torch.equal(adversarial[salience], images[salience])
    change = adversarial - images
    assert (change.flatten(1) != 0).any(1).all()
    size = change.abs().amax() if norm == "Linf" else change.flatten(1).norm(dim=1).max()
    assert size <= trainer.eps * (1 + 1e-5)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@norms
@every_search
def test_a_soft_map_scales_the_budget_of_each_element(row, norm, network, images, labels):
    soft = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    trainer = row.trainer(network, soft, **settings(norm))
    change = (perturbed(trainer, images, labels) - images).abs()
    assert (change <= trainer.eps * (1 - soft) + 1e-6).all()
    assert (change > 0).any()


@every_search
def test_a_map_may_come_from_a_function_or_with_the_batch(row, network, images, labels, salience):
    fixed = perturbed(row.trainer(network, salience), images, labels)
    assert torch.equal(perturbed(row.trainer(network, lambda x: salience), images, labels), fixed)
    given = perturbed(row.trainer(network, torch.zeros(16, 16)), images, labels, mask=salience)
    assert torch.equal(given, fixed)
    all_salient = torch.ones(16, 16)
    assert torch.equal(perturbed(row.trainer(network, salience), images, labels, mask=all_salient), images)


@every_method
def test_the_same_seed_gives_the_same_result(row, network, images, labels, salience):
    results = []
    for seed in (0, 0, 1):
        trainer = row.trainer(network, salience)
        torch.manual_seed(seed)
        results.append((trainer(images, labels), perturbed(trainer, images, labels, seed)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][1], results[2][1]) == (not row.make().adversarial)


@every_method
def test_the_search_leaves_no_trace(row, network, images, labels, salience):
    network.train()
    network[1].eval()
    for parameter in list(network.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    before = everything(network)
    images.requires_grad_()
    clean = images.detach().clone()
    row.trainer(network, salience).perturb(images, labels)
    same(before, everything(network))
    assert images.grad is None
    assert torch.equal(images, clean)


@every_method
def test_passes_through_the_network(row, network, images, labels, salience):
    rows = []
    network.register_forward_hook(lambda module, given, output: rows.append(len(given[0])))
    trainer = row.trainer(network, salience)
    trainer(images, labels).backward()
    if row.passes is not None:
        assert rows == [len(images)] * row.passes
    else:
        assert sum(rows) <= len(images) * (STEPS + 1)
        assert sum(rows) == round(trainer.metrics["steps"].item() * len(images)) + len(images)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every_method
def test_perturb_works_where_gradients_are_off(row, mode, network, images, labels):
    trainer = row.trainer(network, GradientSalience(network))
    expected = perturbed(trainer, images, labels)
    with mode():
        inside_images, inside_labels = images * 1, labels * 1  # inference tensors
        adversarial = perturbed(trainer, inside_images, inside_labels)
        trainer(inside_images, inside_labels)
    assert torch.equal(adversarial, expected)


@every_method
def test_every_parameter_gets_its_gradient_under_autocast(row, network, images, labels, salience):
    """Weights cast during the search must not stay in autocast's cache without their graph."""
    trainer = row.trainer(network, salience)
    scaler = torch.amp.GradScaler("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        loss = trainer(images, labels)
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@every_method
def test_gradients_accumulate_as_in_any_loop(row, network, images, labels, salience):
    trainer = row.trainer(network, salience)

    def backward():
        torch.manual_seed(0)
        trainer(images, labels).backward()
        return [p.grad.clone() for p in network.parameters()]

    once, twice = backward(), backward()
    assert all(torch.allclose(2 * a, b, atol=1e-6) for a, b in zip(once, twice, strict=True))


@every_method
def test_a_compiled_model_trains_alike(row, network, images, labels, salience):
    gradients = []
    compiled = torch.compile(copy.deepcopy(network).train(), backend="aot_eager")
    network[6] = compiled._orig_mod[6] = nn.Identity()  # a compiled Dropout draws otherwise
    for model in (network.train(), compiled):
        torch.manual_seed(0)
        row.trainer(model, salience)(images, labels).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*gradients, strict=True))
    torch.compiler.reset()


@every_search
def test_channels_last_images_stay_so(row, network, images, labels, salience):
    images = images.to(memory_format=torch.channels_last)
    adversarial = row.trainer(network, salience).perturb(images, labels)
    assert adversarial.is_contiguous(memory_format=torch.channels_last)


@every_search
def test_random_start_false_starts_at_the_image_or_is_refused(row, network, images, labels, salience):
    if not row.starts_at_the_image:
        with pytest.raises(ValueError, match="random_start=True"):
            row.trainer(network, random_start=False)
        return
    trainer = row.trainer(network, salience, random_start=False, steps=0)
    assert torch.equal(trainer.perturb(images, labels), images)


@every_search
def test_the_search_raises_the_loss(row, network, images, labels, salience):
    trainer = row.trainer(network, salience, eps=0.2, alpha=0.05, steps=8)
    with torch.no_grad():
        clean = nn.functional.cross_entropy(network(images), labels)
        searched = nn.functional.cross_entropy(network(perturbed(trainer, images, labels)), labels)
    assert searched > clean + 0.3


@every_search
def test_eps_alpha_and_steps_may_go_by_the_epoch(row, network, images, labels, salience):
    changing = row.trainer(network, salience, eps=lambda e: EPS * e, alpha=lambda e: 0.01 * e, steps=lambda e: e + 1)
    for epoch in (1, 3):
        changing.set_epoch(epoch, 10)
        fixed = row.trainer(network, salience, eps=EPS * epoch, alpha=0.01 * epoch, steps=epoch + 1)
        fixed.set_epoch(epoch, 10)
        assert torch.equal(perturbed(changing, images, labels), perturbed(fixed, images, labels))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"eps": lambda epoch: 8}, "8/255"),
        ({"alpha": lambda epoch: -1.0}, "alpha"),
        ({"steps": lambda epoch: 2.5}, "steps"),
    ],
)
def test_a_schedules_bad_value_is_a_clear_error(changes, says, network, images, labels):
    trainer = AdversarialTrainer(network, "madry", **changes)
    with pytest.raises(ValueError, match=says):
        trainer(images, labels)


@every_method
def test_the_repr_shows_the_method_and_its_parameters(row, network):
    assert repr(row.make()) in repr(row.trainer(network, eps=lambda epoch: 0.1))


@every_method
@pytest.mark.parametrize(
    "change",
    [
        lambda logits: (logits, logits),
        lambda logits: logits[:, :1],
        lambda logits: logits[:, :, None].expand(-1, -1, 2),
        lambda logits: torch.cat([logits, logits]),
    ],
)
def test_what_is_no_logits_is_a_clear_error(row, change, network, images, labels, salience):
    class Wrong(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return change(self.network(x))

    with pytest.raises(ValueError, match="must give logits"):
        row.trainer(Wrong(), salience)(images, labels)
