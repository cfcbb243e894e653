"""``attack=``: torchattacks', ART's and plain functions in the place of the search."""

import numpy as np
import pytest
import torch
import torchattacks
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from torch import nn

from sip_plugin import AdversarialTrainer, SIPWrapper
from sip_plugin.training import MART, SIPAT, TRADES, Madry
from tests.adapters.test_contract import everything, same

ACCEPTING = pytest.mark.parametrize("method", [Madry(), TRADES(), MART(), SIPAT()], ids=lambda m: m.name)


def pgd(network):
    return torchattacks.PGD(network, eps=0.1, alpha=0.03, steps=3)


def art_pgd(network):
    classifier = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), (3, 16, 16), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    return ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.03, max_iter=3, num_random_init=1, verbose=False)


def seeded(call, *arguments, **named):
    torch.manual_seed(0)
    np.random.seed(0)
    return call(*arguments, **named)


def onehot(labels):
    return np.eye(10, dtype=np.float32)[labels.numpy()]


@pytest.mark.parametrize("make", [pgd, art_pgd])
def test_a_bare_attacks_images_are_the_ones_trained_on(make, network, images, labels):
    attack = make(network)
    trainer = AdversarialTrainer(network, "madry", attack=attack)
    adversarial = seeded(trainer.perturb, images, labels)
    if make is pgd:
        expected = seeded(attack, images, labels)
    else:
        expected = torch.from_numpy(seeded(attack.generate, images.numpy(), onehot(labels)))
    assert torch.equal(adversarial, expected)
    assert not torch.equal(adversarial, images)
    assert torch.equal(seeded(trainer, images, labels), nn.functional.cross_entropy(network(adversarial), labels))


@pytest.mark.parametrize("given", ["the wrapper's", "the trainer's", "the call's"])
@pytest.mark.parametrize("make", [pgd, art_pgd])
@ACCEPTING
def test_a_wrapped_attack_leaves_salient_elements_alone(method, make, given, network, images, labels, salience):
    other = torch.zeros(16, 16)
    wrapper = SIPWrapper(make(network), salience if given == "the wrapper's" else other)
    trainer = AdversarialTrainer(
        network, method, salience=salience if given == "the trainer's" else None, attack=wrapper
    )
    adversarial = trainer.perturb(images, labels, salience if given == "the call's" else None)
    assert torch.equal(adversarial[salience], images[salience])
    assert (adversarial != images)[~salience].float().mean() > 0.5
    loss = trainer(images, labels, salience if given == "the call's" else None)
    loss.backward()
    assert loss.isfinite()
    assert "steps" not in trainer.metrics
    assert ("salient" in trainer.metrics) == (given != "the wrapper's")


def test_trades_with_an_attack_has_its_own_outer_loss(network, images, labels):
    trainer = AdversarialTrainer(network, TRADES(beta=2.0), attack=pgd(network))
    adversarial = seeded(trainer.perturb, images, labels)
    clean, attacked = (nn.functional.log_softmax(network(x), 1) for x in (images, adversarial))
    kl = (clean.exp() * (clean - attacked)).sum() / len(images)
    expected = nn.functional.cross_entropy(network(images), labels) + 2 * kl
    assert torch.allclose(seeded(trainer, images, labels), expected, atol=1e-5)


def test_any_function_and_a_bound_method_will_do(network, images, labels, salience):
    trainer = AdversarialTrainer(network, "madry", attack=lambda x, y: (x + 0.05).clamp(0, 1).double())
    assert torch.equal(trainer.perturb(images, labels), (images + 0.05).clamp(0, 1))
    wrapper = SIPWrapper(pgd(network), salience)
    before = images.clone()
    adversarial = AdversarialTrainer(network, "madry", attack=lambda x, y: x.mul_(0.9)).perturb(images, labels)
    assert torch.equal(images, before)
    assert torch.equal(adversarial, before * 0.9)
    adversarial = AdversarialTrainer(network, "sip-at", attack=wrapper.forward).perturb(images, labels)
    assert torch.equal(adversarial[salience], images[salience])


def test_an_attack_finds_the_network_in_eval_mode(network, images, labels):
    modes = []
    network.train()
    AdversarialTrainer(network, "madry", attack=lambda x, y: (modes.append(network.training), x)[1])(images, labels)
    assert modes == [False]
    assert network.training


def test_nothing_is_left_behind_also_when_it_raises(network, images, labels):
    class Careless:
        def __init__(self, error):
            self.error = error

        def __call__(self, x, y):
            network.train()
            nn.functional.cross_entropy(network(x.requires_grad_()), y).backward()
            network[0].weight.requires_grad_(False)
            if self.error:
                raise RuntimeError("the attack failed")
            return x.detach() + 0.001

    network[1].train()
    for parameter in list(network.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    before = everything(network)
    AdversarialTrainer(network, "madry", attack=Careless(False)).perturb(images, labels)
    same(before, everything(network))
    with pytest.raises(RuntimeError, match="the attack failed"):
        AdversarialTrainer(network, "madry", attack=Careless(True))(images, labels)
    same(before, everything(network))
    assert not images.requires_grad


@pytest.mark.parametrize("make", [pgd, art_pgd])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_perturb_works_where_gradients_are_off(mode, make, network, images, labels):
    trainer = AdversarialTrainer(network, "madry", attack=make(network))
    expected = seeded(trainer.perturb, images, labels)
    with mode():
        assert torch.equal(seeded(trainer.perturb, images * 1, labels * 1), expected)


def test_weights_cast_in_an_attack_without_a_graph_are_cast_again_for_the_loss(network, images, labels):
    def attack(x, y):
        with torch.no_grad():
            return torch.where((network(x).argmax(1) == y)[:, None, None, None], x + 0.01, x)

    with torch.autocast("cpu", torch.bfloat16):
        AdversarialTrainer(network, "madry", attack=attack)(images, labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("standard", {}, "no search"),
        ("fat", {}, "part of the method"),
        ("part", {}, "part of the method"),
        ("sip-at", {}, r"SIPWrapper\(PGD"),
        ("madry", {"salience": torch.ones(16, 16)}, "SIPWrapper"),
        ("madry", {"eps": 0.3, "steps": 7}, "eps, steps"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(method, arguments, says, network):
    with pytest.raises(ValueError, match=says):
        AdversarialTrainer(network, method, **{"attack": pgd(network), **arguments})


def test_a_map_with_the_call_is_refused_by_a_bare_attack(network, images, labels, salience):
    with pytest.raises(ValueError, match="SIPWrapper"):
        AdversarialTrainer(network, "madry", attack=pgd(network))(images, labels, salience)


def test_the_repr_shows_the_attack_and_not_the_searchs_settings(network):
    shown = repr(AdversarialTrainer(network, "madry", attack=pgd(network)))
    assert "attack=PGD(" in shown
    assert "random_start=True, attack" not in shown


def test_a_targeted_attack_and_images_out_of_range_are_refused(network, images, labels):
    attack = torchattacks.PGD(network, steps=1)
    attack.set_mode_targeted_by_label(quiet=True)
    with pytest.raises(ValueError, match="untargeted"):
        AdversarialTrainer(network, "madry", attack=attack)(images, labels)
    for wrong in (lambda x, y: x * 5, lambda x, y: x * float("nan"), lambda x, y: None, lambda x, y: x.numpy()):
        with pytest.raises((TypeError, ValueError), match="What function gave must"):
            AdversarialTrainer(network, "madry", attack=wrong)(images, labels)
    with pytest.raises(ValueError, match="not images of shape"):
        AdversarialTrainer(network, "madry", attack=lambda x, y: x[:3])(images, labels)


def test_the_images_of_a_pair_are_taken(network, images, labels):
    pair = AdversarialTrainer(network, "madry", attack=lambda x, y: (1 - x, y)).perturb(images, labels)
    assert torch.equal(pair, 1 - images)


def test_images_of_another_shape_are_refused(network, images, labels):
    with pytest.raises(ValueError, match=r"\(6, 3, 16, 8\), not images of shape \(6, 3, 16, 16\)"):
        AdversarialTrainer(network, "madry", attack=lambda x, y: x[..., :8])(images, labels)
