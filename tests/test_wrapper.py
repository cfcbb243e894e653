"""What can be wrapped, what cannot, and what every wrapped attack answers to bad input."""

import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
import torchattacks
from torch import nn

from sip_plugin import SIPWrapper


@pytest.fixture
def wrapped(network, salience):
    return SIPWrapper(torchattacks.PGD(network, steps=2), salience)


@pytest.mark.parametrize(
    "attack",
    [None, 3, "PGD", lambda x, y: x, nn.Linear(2, 2), object(), torchattacks.PGD, torch.optim.SGD([torch.ones(1)])],
)
def test_an_unknown_object_as_attack_is_a_type_error_that_says_what_is_supported(attack):
    with pytest.raises(TypeError, match=r"Supported are the attacks of torchattacks.*\.model"):
        SIPWrapper(attack, torch.zeros(16, 16))


def test_a_wrapped_attack_is_not_wrapped_twice(wrapped):
    with pytest.raises(TypeError, match="Combine the maps"):
        SIPWrapper(wrapped, torch.zeros(16, 16))


@pytest.mark.parametrize("mask_fn", ["map.png", 1, [[0]]])
def test_a_mask_fn_that_can_give_no_map_is_a_type_error(mask_fn, network):
    with pytest.raises(TypeError, match="mask_fn"):
        SIPWrapper(torchattacks.PGD(network), mask_fn)


def test_without_any_map_the_call_says_where_to_give_one(network, images, labels):
    with pytest.raises(ValueError, match=r"mask_fn.*mask="):
        SIPWrapper(torchattacks.PGD(network))(images, labels)


@pytest.mark.parametrize(
    ("mask", "kind", "says"),
    [
        (torch.zeros(8, 8), ValueError, r"got shape \(8, 8\)"),
        (torch.zeros(5, 3, 16, 16), ValueError, "got shape"),
        (torch.zeros(3, 16, 16), ValueError, r"ambiguous.*mask\[None\]"),
        (torch.full((16, 16), 0.5), ValueError, "soft"),
        (torch.full((16, 16), math.nan), ValueError, "NaN"),
        (torch.full((16, 16), 2), ValueError, "0 and 1"),
        ([[0, 1]], TypeError, "list"),
    ],
)
@pytest.mark.parametrize("through", ["mask_fn", "mask"])
def test_a_bad_map_is_a_clear_error_and_leaves_the_attack_usable(mask, kind, says, through, network, images, labels):
    attack = torchattacks.PGD(network, steps=2)
    network.train()
    wrapper = SIPWrapper(attack) if through == "mask" else SIPWrapper(attack, lambda x: mask)
    with pytest.raises(kind, match=says):
        wrapper(images, labels, **({"mask": mask} if through == "mask" else {}))
    assert attack.model is network
    assert network.training
    SIPWrapper(attack, torch.zeros(16, 16))(images, labels)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (lambda x, y: (x * 255, y), ValueError, r"\[0, 1\]"),
        (lambda x, y: (x - 1, y), ValueError, r"\[0, 1\]"),
        (lambda x, y: (x * math.nan, y), ValueError, "finite"),
        (lambda x, y: (x[0], y), ValueError, "four dimensions"),
        (lambda x, y: (x[:0], y[:0]), ValueError, "at least one"),
        (lambda x, y: ((x * 255).byte(), y), TypeError, "floating point"),
        (lambda x, y: (x.numpy(), y), TypeError, "torch.Tensor"),
        (lambda x, y: (x, y[:5]), ValueError, "one class index per image"),
        (lambda x, y: (x, y.float()), TypeError, "int64"),
        (lambda x, y: (x, y - 100), ValueError, "class indices from 0"),
        (lambda x, y: (x, y.tolist()), TypeError, "torch.Tensor"),
        (lambda x, y: (x, nn.functional.one_hot(y, 10)), ValueError, "one class index per image"),
    ],
)
def test_bad_images_and_labels_are_a_clear_error(change, kind, says, wrapped, images, labels):
    with pytest.raises(kind, match=says):
        wrapped(*change(images, labels))


def test_a_missing_library_is_not_needed_and_none_is_imported_for_the_core():
    code = """
import sys
for name in ("torchattacks", "art", "autoattack", "pyautoattack", "foolbox", "captum", "torchvision", "matplotlib"):
    sys.modules[name] = None  # an import of it raises ImportError, as where it is not installed
import torch, sip_plugin, sip_plugin.salience, sip_plugin.training
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
x, y = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
trainer = sip_plugin.AdversarialTrainer(model, "sip-at", salience=sip_plugin.salience.GradientSalience(model))
trainer(x, y).backward()
try:
    import sip_plugin.adapters.torchattacks
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "sip-plugin[torchattacks]" in run.stdout


def test_reading_and_setting_attributes_reaches_the_attack(wrapped):
    wrapped.eps = 0.25
    assert wrapped.wrapped.eps == wrapped.eps == 0.25
    assert wrapped.attack == "PGD"
    assert isinstance(wrapped, torchattacks.attack.Attack)
    assert isinstance(wrapped, SIPWrapper)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = wrapped.no_such_thing


def test_the_repr_shows_attack_and_mask(network, salience):
    shown = repr(SIPWrapper(torchattacks.PGD(network, eps=0.25), salience))
    assert shown.startswith("SIPWrapper(PGD(")
    assert "eps=0.25" in shown
    assert "Tensor of shape (6, 3, 16, 16)" in shown


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_a_copy_works_alike_and_has_its_own_settings(duplicate, wrapped, images, labels):
    other = duplicate(wrapped)
    torch.manual_seed(0)
    expected = wrapped(images, labels)
    torch.manual_seed(0)
    assert torch.equal(other(images, labels), expected)
    assert isinstance(other, torchattacks.attack.Attack)
    other.eps = 0.5
    assert wrapped.eps != 0.5


class Foreign:
    """An attack of an unknown library: gradient ascent in its own way, with a plain ``.model``."""

    def __init__(self, model):
        self.model = model

    def __call__(self, images, labels, scale=1.0):
        point = images.clone().requires_grad_()
        torch.nn.functional.cross_entropy(self.model(point), labels).backward()
        return (images + 0.1 * scale * point.grad.sign()).clamp(0, 1)


@pytest.mark.parametrize("plain", [False, True])
def test_an_attack_of_an_unknown_library_works_by_query_projection(plain, network, images, labels, salience):
    model = (lambda x: network(x)) if plain else network
    foreign = Foreign(model)
    wrapper = SIPWrapper(foreign, lambda x, y: salience)
    adversarial = wrapper(images, labels, scale=0.5)
    expected = torch.where(salience, images, Foreign(network)(images, labels, scale=0.5))
    assert torch.equal(adversarial, expected)
    assert foreign.model is model
    assert isinstance(wrapper, SIPWrapper)
    assert torch.equal(wrapper(images, labels, mask=torch.ones(16, 16)), images)
    each = SIPWrapper(foreign, salience, one_by_one=True)(images, labels)
    assert torch.equal(each[salience], images[salience])


def test_a_foreign_attack_that_fails_gets_its_model_back(network, images, labels, salience):
    foreign = Foreign(network)
    with pytest.raises(TypeError, match="unexpected"):
        SIPWrapper(foreign, salience)(images, labels, unknown=1)
    assert foreign.model is network


def test_an_attack_that_returns_no_images_is_an_error(network, images, labels, salience):
    foreign = Foreign(network)
    foreign.__class__ = type("Odd", (Foreign,), {"__call__": lambda self, x, y: self.model(x)})
    with pytest.raises(RuntimeError, match=r"\(6, 10\).*\(6, 3, 16, 16\)"):
        SIPWrapper(foreign, salience)(images, labels)


class Divides(Foreign):
    """Divides by the gradient's norm, which is zero where the network does not look."""

    def __call__(self, images, labels):
        point = images.clone().requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(self.model(point), labels), point)
        return (images + 0.1 * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)


def test_an_attack_that_divides_by_a_zero_gradient_gives_the_clean_image_and_says_so(network, images, labels):
    class Blind(nn.Module):
        """Sees the upper half only."""

        def forward(self, x):
            return network(torch.cat([x[:, :, :8], torch.zeros_like(x[:, :, 8:])], 2))

    upper = torch.zeros(6, 1, 16, 16, dtype=torch.bool)
    upper[:3, :, :8] = True  # for three images, all that is left to the attack has no gradient
    with pytest.warns(RuntimeWarning, match=r"Divides gave NaN.*3 of 6 images.*clean images"):
        adversarial = SIPWrapper(Divides(Blind()), upper)(images, labels)
    assert torch.equal(adversarial[:3], images[:3])
    assert not torch.equal(adversarial[3:], images[3:])


class TwoNames(Foreign):
    """Asks its network under another name."""

    def __init__(self, model):
        super().__init__(model)
        self.net = model

    def __call__(self, images, labels):
        point = images.clone().requires_grad_()
        torch.nn.functional.cross_entropy(self.net(point), labels).backward()
        return (images + 0.1 * point.grad.sign()).clamp(0, 1)


class Slots:
    __slots__ = ("model",)

    def __init__(self, model):
        self.model = model

    __call__ = Foreign.__call__


class Setter(Foreign):
    def __init__(self, model):
        self.held = [model]

    @property
    def model(self):
        return self.held[0]

    @model.setter
    def model(self, value):
        self.held[0] = value


@pytest.mark.parametrize("kind", [Foreign, TwoNames, Slots, Setter])
def test_queries_are_projected_however_the_attack_keeps_its_model(kind, network, images, labels, salience):
    seen = []
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    attack = kind(network)
    SIPWrapper(attack, salience)(images.clone() * 0.9 + 0.05, labels)
    clean = images * 0.9 + 0.05
    assert seen
    assert all(torch.equal(queries[salience], clean[salience]) for queries in seen)
    assert attack.model is network
    assert getattr(attack, "net", network) is network


def test_an_attack_whose_model_cannot_be_set_is_refused_at_once(network):
    class Fixed(Foreign):
        def __init__(self):
            pass

        model = property(lambda self: network)

    with pytest.raises(TypeError, match=r"Fixed\.model cannot be set"):
        SIPWrapper(Fixed(), torch.zeros(16, 16))


def test_an_attack_that_goes_past_its_model_is_not_masked_late_in_silence(network, images, labels, salience):
    class Past(Foreign):
        def __call__(self, images, labels):
            return Foreign(network)(images, labels)

    with pytest.warns(RuntimeWarning, match=r"Past changed the images without one query to its network"):
        SIPWrapper(Past(network), salience)(images, labels)


def test_an_attack_some_of_whose_steps_go_past_its_model_says_so(network, images, labels, salience):
    class Captured(Foreign):
        def __init__(self, model):
            super().__init__(model)
            self.loss = lambda x, y: nn.functional.cross_entropy(model(x), y)

        def __call__(self, images, labels):
            self.model(images)
            images = images.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.loss(images, labels), images)
            return (images + 0.1 * gradient.sign()).clamp(0, 1).detach()

    with pytest.warns(RuntimeWarning, match=r"Captured changed the images with 1 call"):
        SIPWrapper(Captured(network), salience)(images, labels)
    assert not network._forward_pre_hooks


class Nested(torchattacks.attack.Attack):
    """A user's attack that is built upon another one."""

    def __init__(self, model, inner):
        super().__init__("Nested", model)
        self.inner = inner

    def forward(self, images, labels):
        return self.inner(images, labels)


def test_a_users_attack_upon_another_is_projected_with_it_or_refused(network, images, labels, salience):
    pgd = torchattacks.PGD(network, eps=0.1, steps=3)
    torch.manual_seed(0)
    expected = SIPWrapper(pgd, salience)(images, labels)
    torch.manual_seed(0)
    assert torch.equal(SIPWrapper(Nested(network, pgd), salience)(images, labels), expected)
    for inner in (torchattacks.DIFGSM(network), torchattacks.AutoAttack(network), SIPWrapper(pgd, salience)):
        with pytest.raises(TypeError, match="is built upon"):
            SIPWrapper(Nested(network, inner), salience)


def test_an_attack_that_writes_into_its_images_changes_neither_the_callers_nor_the_reference(
    network, images, labels, salience
):
    class Writes(torchattacks.attack.Attack):
        def __init__(self, model):
            super().__init__("Writes", model)

        def forward(self, images, labels):
            self.get_logits(images)
            return images.add_(0.05).clamp_(0, 1)

    before = images.clone()
    adversarial = SIPWrapper(Writes(network), salience)(images, labels)
    assert torch.equal(images, before)
    assert torch.equal(adversarial[salience], images[salience])
    assert not torch.equal(adversarial, images)


def test_a_mask_fn_may_mark_and_write_its_images(network, images, labels):
    def mask_fn(x):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(network(x).sum(), x)
        x.detach().mul_(0)
        return gradient > 0

    before = images.clone()
    adversarial = SIPWrapper(torchattacks.PGD(network, steps=2), mask_fn)(images, labels)
    assert not adversarial.requires_grad
    assert torch.equal(images, before)


def test_maps_made_in_inference_mode_can_be_used_outside(network, images, labels):
    with torch.inference_mode():
        maps = torch.rand(6, 3, 16, 16) < 0.5
    adversarial = SIPWrapper(torchattacks.PGD(network, steps=2), maps)(images, labels)
    assert torch.equal(adversarial[maps], images[maps])


def test_a_new_mask_fn_is_checked_as_the_first(wrapped):
    with pytest.raises(TypeError, match="mask_fn"):
        wrapped.mask_fn = 3


def test_a_network_that_is_no_module_is_put_into_eval_mode_as_the_bare_attack_does(network, images, labels):
    class Duck:
        training = True

        def __init__(self):
            self.calls = []

        def __call__(self, x):
            return network(x)

        def parameters(self):
            return network.parameters()

        def train(self, mode=True):
            self.calls.append(mode)

        def eval(self):
            self.calls.append(False)

    duck = Duck()
    attack = torchattacks.PGD(duck, steps=2)
    SIPWrapper(attack, torch.zeros(16, 16))(images, labels)
    assert duck.calls[0] is False


def test_labels_that_the_network_has_no_logit_for_are_named(network, images, labels, salience):
    class Own:
        def __init__(self):
            self.model = network

        def __call__(self, x, y):
            return (x + 0.1 * torch.autograd.functional.jacobian(lambda z: self.model(z).sum(), x)).clamp(0, 1)

    for attack in (torchattacks.PGD(network, steps=2), Own()):
        with pytest.raises(ValueError, match=r"below 10.*got 10"):
            SIPWrapper(attack, salience)(images, labels.clamp(min=10))


def test_a_map_of_a_wrong_type_is_refused_with_a_call_as_before_it(network, images, labels):
    attack = torchattacks.PGD(network, steps=1)
    for wrong in ([[0, 1]], "map"):
        with pytest.raises(TypeError, match=r"callable .* or a map itself"):
            SIPWrapper(attack, wrong)
        with pytest.raises(TypeError, match=r"callable .* or a map itself"):
            SIPWrapper(attack)(images, labels, mask=wrong)


def test_a_network_that_gives_no_tensor_is_named_with_what_to_do(network, images, labels, salience):
    class Output(dict):
        pass

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return Output(logits=self.network(x))

    for attack in (torchattacks.PGD(Transformer(), steps=1), torchattacks.Square(Transformer(), n_queries=2)):
        with pytest.raises(ValueError, match=r"must give logits .* got Output\. .*output\.logits"):
            SIPWrapper(attack, salience)(images, labels)
