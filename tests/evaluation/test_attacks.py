"""Attacks of other libraries and of one's own, given as factories."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sip_plugin import SIPWrapper
from sip_plugin.evaluation.attacks import clip_rounding, derive_seed, perturbation_norms
from tests.evaluation.conftest import EPS
from tests.evaluation.test_evaluate import evaluate, robust

torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")


def pgd(model, eps):
    return torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=8, random_start=False)


class InDouble(nn.Module):
    """A network's function in double precision, in which the batch that an image is in makes no difference."""

    def __init__(self, network):
        super().__init__()
        self.network = network.double()

    def forward(self, images):
        return self.network(images.double()).float()


def test_an_attack_of_torchattacks(network, evaluated):
    network = InDouble(network).eval()
    x, y = evaluated
    report = evaluate(network, evaluated, attack=pgd)
    assert report.attacks == ("pgd",)
    left = torch.ones(len(x), dtype=torch.bool)
    for ball, eps in enumerate(EPS):
        left &= network(pgd(network, eps)(x, y)).argmax(1) == y
        assert torch.equal(robust(report)[ball], left)
    assert robust(report)[0].sum() > robust(report)[-1].sum()
    assert not network.training


def test_an_attack_of_art(network, evaluated):
    evasion = pytest.importorskip("art.attacks.evasion", reason="adversarial-robustness-toolbox is not installed")
    from art.estimators.classification import PyTorchClassifier

    def fast_gradient(model, eps):
        loss = nn.CrossEntropyLoss()
        classifier = PyTorchClassifier(model, loss, (3, 16, 16), 10, clip_values=(0, 1), device_type="cpu")
        return evasion.FastGradientMethod(classifier, eps=eps)

    report = evaluate(network, evaluated, attack=fast_gradient)
    x, y = evaluated
    x = x.clone().requires_grad_()
    F.cross_entropy(network(x), y, reduction="sum").backward()
    network.zero_grad()
    left = torch.ones(len(x), dtype=torch.bool)
    for ball, eps in enumerate(EPS):
        with torch.no_grad():
            left &= network((x + eps * x.grad.sign()).clamp(0, 1)).argmax(1) == y
        assert torch.equal(robust(report)[ball], left)
    assert report.attacks == ("fast_gradient",)


def test_several_attacks_run_one_after_the_other_on_what_is_left(quick, network, evaluated):
    seen = []

    def nothing(model, eps):
        return lambda images, labels: (seen.append((eps, len(images))), images)[1]

    report = evaluate(network, evaluated, attack={"none": nothing, "PGD": pgd, "AutoAttack": "autoattack"})
    assert report.attacks == ("none", "PGD", "apgd-ce", "apgd-t", "fab-t", "square")
    assert report.norms[0][report.correct_clean].isinf().all()
    for ball, eps in enumerate(EPS):
        left = round(report.after_carrying[eps] * len(report))
        assert seen[ball] == (eps, left)  # the first attack had what later ones broke, and no more


def test_an_attack_with_autoattacks_interface(network, evaluated):
    class Composite:
        def __init__(self, model, eps):
            self.inner = pgd(model, eps)

        def run_standard_evaluation(self, x, y):
            return self.inner(x, y), y

    report = evaluate(network, evaluated, attack=Composite)
    assert report.attacks == ("Composite",)
    assert report.robust_accuracy[EPS[-1]] < report.clean_accuracy


def test_a_class_or_a_partial_function_is_a_factory(network, evaluated):
    few = [part[:4] for part in evaluated]
    assert evaluate(network, few, attack=torchattacks.FGSM).attacks == ("FGSM",)
    assert evaluate(network, few, attack=functools.partial(torchattacks.PGD, steps=2)).attacks == ("PGD",)
    assert evaluate(network, few, attack=lambda model, eps: torchattacks.FGSM(model, eps)).attacks == ("attack",)


def test_a_minimum_norm_attack_counts_in_the_balls_that_hold_its_examples(network, evaluated):
    """DeepFool ignores eps; what it finds beyond the ball counts in larger ones only, and the report says so."""

    def deepfool(model, eps):
        return torchattacks.FAB(model, norm="Linf", eps=1.0, steps=5, n_classes=10)

    report = evaluate(network, evaluated, attack=deepfool)
    found = report.smallest_norm.isfinite() & (report.smallest_norm > 0)
    for ball, eps in enumerate(EPS):
        assert torch.equal(robust(report)[ball], ~(report.smallest_norm <= eps))
    assert ((report.smallest_norm > EPS[0]) & found).any()
    assert any("outside the ball" in warning for warning in report.warnings)


def test_random_attacks_give_the_same_again_and_leave_the_callers_generators(network, evaluated):
    def noise(model, eps):
        def attack(images, labels):
            steps = torch.rand_like(images) + torch.from_numpy(np.random.rand(*images.shape)).float() - 1
            return (images + eps * steps.clamp(-1, 1)).clamp(0, 1)

        return attack

    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    one, again, other = (
        evaluate(network, evaluated, attack=noise, eps=(0.5, 0.9), seed=seed, return_adversarial=True)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.adversarial[0.9], again.adversarial[0.9])
    assert not torch.equal(one.adversarial[0.9], other.adversarial[0.9])
    assert np.array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])


def test_what_only_leaves_the_ball_or_changes_nothing_is_no_adversarial_example(network, evaluated):
    far = evaluate(network, evaluated, attack=lambda model, eps: lambda x, y: 1 - x)
    assert far.robust_accuracy[EPS[-1]] == far.clean_accuracy
    assert far.smallest_norm.isfinite().any()
    still = evaluate(network, evaluated, attack=lambda model, eps: lambda x, y: x * 1.0)
    assert still.norms[0][still.correct_clean].isinf().all()
    assert not still.warnings


def test_a_masked_attack_is_named_as_such(network, evaluated, salience):
    x, y = (part[:6] for part in evaluated)

    def masked(model, eps):
        return SIPWrapper(pgd(model, eps), lambda images: images > 0.5)

    report = evaluate(network, (x, y), attack=masked)
    assert any("restricted by salience maps" in warning for warning in report.warnings)


def test_an_attack_that_takes_the_labels_for_targets_is_refused(network, evaluated):
    def targeted(mode):
        def factory(model, eps):
            attack = pgd(model, eps)
            getattr(attack, f"set_mode_targeted_{mode}")(quiet=True)
            return attack

        return factory

    with pytest.raises(ValueError, match="targeted"):
        evaluate(network, evaluated, attack=targeted("by_label"))
    report = evaluate(network, evaluated, attack=targeted("least_likely"))
    assert report.robust_accuracy[EPS[-1]] < report.clean_accuracy


def test_attacks_of_one_name_are_an_error_before_the_work(quick, network, evaluated):
    network.register_forward_pre_hook(lambda *_: pytest.fail("a pass"))
    with pytest.raises(ValueError, match="square, square"):
        evaluate(network, evaluated, attack={"square": pgd, "autoattack": "autoattack"}, version=["square"])


def test_a_network_whose_train_returns_nothing(network, evaluated):
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()

    report = evaluate(Frozen(*network), evaluated, attack=pgd)
    assert torch.equal(report.norms, evaluate(network, evaluated, attack=pgd).norms)


@pytest.mark.parametrize("fold", [False, True])
def test_each_attack_and_the_verification_find_the_network_in_eval_mode(fold, network, evaluated):
    modes = []
    network.register_forward_hook(lambda module, *_: modes.append(module.training))

    def careless(model, eps):
        def attack(images, labels):
            modes.append(model.training)
            model.train()
            return images

        return attack

    evaluate(network, evaluated, attack={"one": careless, "two": careless}, fold_batchnorm=fold)
    assert len(modes) > 4
    assert not any(modes)


def test_a_ready_attack_is_an_error_that_says_what_to_do(network, evaluated):
    for ready in (pgd(network, 0.1), SIPWrapper(pgd(network, 0.1), lambda x: x > 0.5)):
        for attack in (ready, {"PGD": ready}):
            with pytest.raises(TypeError, match=r"made already.*lambda model, eps"):
                evaluate(network, evaluated, attack=attack)


WRONG = r"Attack 'wrong' must give finite images in \[0, 1\] of the shape \(.*, got others for image\(s\) \[{}\] of the data"


@pytest.mark.parametrize(
    "wrong", [lambda x: (255 * x).byte(), lambda x: 255 * x, lambda x: x[:1], lambda x: x.flatten(), lambda x: x[:0]]
)
def test_a_wrong_attack_is_an_error(wrong, network, evaluated):
    with pytest.raises(ValueError, match=WRONG.format(".*")):
        evaluate(network, evaluated, attack={"wrong": lambda model, eps: lambda x, y: wrong(x)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_attack_that_fails_on_an_image_is_an_error_that_names_both(value, network, evaluated):
    """Otherwise the image would count as robust."""
    failing = evaluated[0][12]

    def wrong(model, eps):
        def attack(images, labels):
            images[(images == failing).flatten(1).all(1), 0, 3, 3] = value
            return images

        return attack

    with pytest.raises(ValueError, match=WRONG.format("12")):
        evaluate(network, evaluated, attack=wrong, batch_size=5)


def test_what_an_attack_does_to_the_network_is_undone(network, evaluated):
    def careless(model, eps):
        def attack(images, labels):
            model.train()
            model(images)
            model.eval()
            images.requires_grad_()
            F.cross_entropy(model(images), labels).backward()
            return (images + eps * images.grad.sign()).clamp(0, 1).detach()

        return attack

    statistics = network[1].running_mean.clone()
    evaluate(network, evaluated, attack=careless)
    assert torch.equal(network[1].running_mean, statistics)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_an_attack_of_foolbox_in_a_function(network, evaluated):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")

    def fast_gradient(model, eps):
        attack = foolbox.attacks.LinfFastGradientAttack()
        inside = foolbox.PyTorchModel(model, bounds=(0, 1))
        return lambda images, labels: attack(inside, images, labels, epsilons=eps)[1]

    report = evaluate(network, evaluated, attack=fast_gradient)
    assert torch.equal(robust(report), robust(evaluate(network, evaluated, attack=torchattacks.FGSM)))


RADII = (1 / 255, 4 / 255, 8 / 255)


@pytest.fixture
def clean():
    return torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def direction(clean):
    return torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("eps", RADII)
def test_what_an_attack_computes_in_float32_is_put_exactly_into_the_linf_ball(clean, eps):
    attacked = (clean + eps * direction(clean).sign()).clamp(0, 1)
    assert (perturbation_norms(attacked, clean, "Linf") > eps).any()  # by rounding alone
    inside = clip_rounding(attacked, clean, RADII, "Linf")
    norms = perturbation_norms(inside, clean, "Linf")
    assert (norms <= eps).all()
    assert (norms >= eps - 8 * 2.0**-24).all()
    assert inside.min() >= 0
    assert inside.max() <= 1


@pytest.mark.parametrize("eps", [0.1, 0.5, 2.0])
def test_what_an_attack_computes_in_float32_is_put_exactly_into_the_l2_ball(clean, eps):
    delta = direction(clean)
    attacked = clean + delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * eps
    assert (perturbation_norms(attacked, clean, "L2") > eps).any()
    norms = perturbation_norms(clip_rounding(attacked, clean, (eps,), "L2"), clean, "L2")
    assert (norms <= eps).all()
    assert (norms >= eps - 8 * 2.0**-24 * clean[0].numel() ** 0.5).all()


def test_bright_images_with_small_perturbations_end_inside_the_l2_ball():
    """Where half of a float32's last digit is more than what is to be taken away."""
    generator = torch.Generator().manual_seed(0)
    clean = 0.55 + 0.35 * torch.rand(8, 3, 64, 64, generator=generator)
    delta = torch.randn(clean.shape, generator=generator)
    attacked = clean + 0.5 * delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (perturbation_norms(attacked, clean, "L2") > 0.5).any()
    norms = perturbation_norms(clip_rounding(attacked, clean, (0.5,), "L2"), clean, "L2")
    assert (norms <= 0.5).all()
    assert (norms > 0.5 - 1e-4).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_what_is_outside_by_more_than_rounding_or_inside_stays_as_it_is(clean, norm):
    for scale in (0.3, 1.01, 1.9):
        delta = direction(clean)
        size = perturbation_norms(clean + delta, clean, norm).view(-1, 1, 1, 1)
        attacked = (clean.double() + delta.double() / size * scale * RADII[1]).float()
        assert torch.equal(clip_rounding(attacked, clean, RADII, norm), attacked)


def test_norms_are_those_of_the_definition():
    clean, attacked = torch.zeros(2, 1, 1, 2), torch.tensor([[[[0.3, -0.4]]], [[[0.0, 0.5]]]])
    assert perturbation_norms(attacked, clean, "Linf").tolist() == pytest.approx([0.4, 0.5])
    assert perturbation_norms(attacked, clean, "L2").tolist() == pytest.approx([0.5, 0.5])


def test_seeds_follow_from_all_their_parts():
    seeds = {derive_seed(*parts) for parts in ((0, 0.1, "a"), (1, 0.1, "a"), (0, 0.2, "a"), (0, 0.1, "b"), (0, 0.1))}
    assert len(seeds) == 5
    assert derive_seed(0, 0.1, "a") == derive_seed(0, 0.1, "a")
    assert all(0 <= seed < 2**63 for seed in seeds)
