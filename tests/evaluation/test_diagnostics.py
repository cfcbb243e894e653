"""Each sign of an unreliable evaluation is found where it is, and not where it is not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sip_plugin.evaluation import diagnostics
from tests.evaluation.test_evaluate import evaluate


class Around(nn.Module):
    """A network with something around it."""

    def __init__(self, network, after=None, before=None):
        super().__init__()
        self.network, self.after, self.before = network, after, before

    def forward(self, x):
        logits = self.network(self.before(x) if self.before else x)
        return self.after(logits) if self.after else logits


def only_small(model, eps):
    """An attack of one step that does nothing at a large ε."""

    def attack(images, labels):
        images = images.clone().requires_grad_()
        F.cross_entropy(model(images), labels).backward()
        step = images.grad.sign() if eps < 0.1 else torch.zeros_like(images)
        return (images + eps * step).clamp(0, 1).detach()

    return attack


def warned(report, text):
    return [warning for warning in report.warnings if text in warning]


def test_an_ordinary_network_gives_no_warning(quick, network, evaluated):
    assert evaluate(network, evaluated).warnings == ()
    assert evaluate(network, evaluated, assume_survivors=True).warnings == ()


def test_a_randomised_network(quick, network, evaluated):
    noisy = Around(network, before=lambda x: x + 0.05 * torch.randn_like(x))
    assert warned(evaluate(noisy, evaluated, version=["apgd-ce"]), "The network is randomised")
    assert not warned(evaluate(noisy, evaluated, version="rand"), "randomised")
    assert not evaluate(noisy, evaluated, version=["apgd-ce"], sanity_checks=False).warnings


def test_modules_that_stay_in_train_mode(quick, network, evaluated):
    class Stubborn(nn.Dropout):
        def train(self, mode=True):
            return super().train(True)

    network[6] = Stubborn(0.2)
    report = evaluate(network, evaluated, version=["apgd-ce"])
    assert warned(report, "train mode after model.eval(): Stubborn")
    assert warned(report, "randomised")


def test_statistics_of_the_batch(quick, network, evaluated):
    network[1] = nn.BatchNorm2d(8, track_running_stats=False)
    report = evaluate(network, evaluated, version=["apgd-ce"])
    assert warned(report, "depend on the other images of its batch")
    assert not warned(report, "randomised")


def test_probabilities_in_place_of_logits(quick, network, evaluated):
    report = evaluate(Around(network, after=lambda logits: logits.softmax(1)), evaluated, version=["apgd-ce"])
    assert warned(report, "look like probabilities")


def test_saturated_cross_entropy(quick, network, evaluated):
    report = evaluate(Around(network, after=lambda logits: 1000 * logits), evaluated, version=["apgd-ce"])
    assert warned(report, "gradient of the cross-entropy is exactly zero for")
    assert not warned(report, "logit margin")


def test_no_gradient_at_all_for_some_images(quick, network, evaluated):
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * (x.flatten(1).mean(1) > x.flatten(1).mean(1).median()).view(-1, 1, 1, 1)

    report = evaluate(Around(network, before=Straight.apply), evaluated, version=["apgd-t"])
    found = warned(report, "gradient of the logit margin is exactly zero")
    assert found
    assert int(found[0].partition("zero for ")[2].split()[0]) >= 5


def test_a_network_without_gradient_is_only_attacked_by_black_boxes(quick, network, evaluated):
    rounding = Around(network, before=lambda x: (x.detach() * 255).round() / 255)
    with pytest.raises(ValueError, match="no gradient with respect to the image"):
        evaluate(rounding, evaluated)
    report = evaluate(rounding, evaluated, version=["square"])
    assert warned(report, "only black-box attacks")


def test_a_black_box_attack_stronger_than_the_white_box_ones(quick, network, evaluated):
    class Masked(torch.autograd.Function):
        """The identity, whose gradient points into a wrong direction."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return torch.ones_like(gradient)

    report = evaluate(Around(network, before=Masked.apply), evaluated, eps=(0.1, 0.3), version=["apgd-ce", "square"])
    assert (report.norms[1] <= 0.3).any()
    assert warned(report, "Square, a black-box attack, broke")


def test_an_attack_that_fails_at_a_larger_eps(network, evaluated):
    report = evaluate(network, evaluated, attack=only_small, eps=(0.08, 0.2))
    broken = int(report.correct_clean.sum() - report.correct[0.08].sum())
    assert broken
    assert warned(report, f"Of {broken} images that only_small broke at eps = 0.08, {broken} withstood")


def test_a_later_attack_that_fails_at_a_larger_eps(network, evaluated):
    """What is broken at a small ε is carried upward, so nobody else would notice."""

    attacks = {"nothing": lambda model, eps: lambda images, labels: images, "only small": only_small}
    report = evaluate(network, evaluated, attack=attacks, eps=(0.08, 0.2))
    assert warned(report, "images that only small broke at eps = 0.08")
    assert not warned(report, "nothing broke")


def test_nan_under_attack_is_broken_whatever_the_class(network, evaluated):
    class NaNElsewhere(nn.Module):
        """As it was on clean images, and NaN for all others."""

        def forward(self, x):
            clean = (x[:, None] == evaluated[0]).flatten(2).all(2).any(1)
            return network(x).masked_fill(~clean[:, None], torch.nan)

    def shifted(model, eps):
        return lambda images, labels: (images + eps * torch.linspace(-1, 1, 256).view(1, 16, 16)).clamp(0, 1)

    report = evaluate(NaNElsewhere(), evaluated, attack=shifted, eps=0.05)
    assert report.clean_accuracy > 0.8
    assert report.robust_accuracy[0.05] == 0
    broken = int(report.correct_clean.sum())
    assert warned(report, f"gave NaN for adversarial examples of {broken} of 20 images, which count as broken")
    far = evaluate(NaNElsewhere(), evaluated, attack=lambda model, eps: shifted(model, 4 * eps), eps=(0.03, 0.05))
    assert far.robust_accuracy[0.05] == far.clean_accuracy
    assert not warned(far, "NaN")  # outside every ball


def test_probabilities_in_half_precision(quick, network, evaluated):
    report = evaluate(
        Around(network, after=lambda logits: logits.softmax(1).bfloat16()),
        evaluated,
        attack=lambda m, e: lambda x, y: x,
    )
    assert warned(report, "look like probabilities")
    shares = torch.rand(16, 200) * 0.002  # of a small sum
    assert not diagnostics._are_probabilities(shares.bfloat16()).any()
    assert diagnostics._are_probabilities(torch.randn(16, 200).softmax(1).bfloat16()).all()


def test_an_assumption_that_does_not_hold(network, evaluated):
    report = evaluate(network, evaluated, attack=only_small, eps=(0.08, 0.2), assume_survivors=True)
    assert warned(report, "assume_survivors does not hold")
    assert report.robust_accuracy[0.2] == report.robust_accuracy[0.08] < report.clean_accuracy
    assert torch.equal(report.assumed, report.correct[0.08])


def test_a_network_that_computes_gradients_in_its_forward(quick, network, evaluated):
    class Adapting(nn.Module):
        """Moves the image along the entropy's gradient, which also runs through the parameters, before it answers."""

        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            with torch.enable_grad():
                inner = x.detach().requires_grad_()
                probabilities = self.network(inner).softmax(1)
                entropy = -(probabilities * probabilities.log()).sum()
                step, _ = torch.autograd.grad(entropy, [inner, self.network[0].weight])
            return self.network(x - 0.01 * step.sign())

    report = evaluate(Adapting(), evaluated, version=["apgd-ce"])
    assert warned(report, "a dynamic defence")
    assert not diagnostics.is_dynamic(network, evaluated[0])


def test_an_evaluation_under_autocast(quick, network, evaluated):
    with torch.autocast("cpu", torch.bfloat16):
        assert warned(evaluate(network, evaluated, version=["apgd-ce"]), "autocast")
