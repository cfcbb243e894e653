"""What is Foolbox's own: its call with a model and budgets, its criteria, bounds, starting points, what is refused."""

import copy
import inspect
import pickle
import threading

import eagerpy as ep
import foolbox
import foolbox.attacks as attacks
import numpy as np
import pytest
import torch
from foolbox.attacks.base import Attack, FixedEpsilonAttack, MinimizationAttack
from foolbox.criteria import Misclassification, TargetedMisclassification
from torch import nn

from sip_plugin import SIPWrapper
from sip_plugin.adapters.base import call_lock
from sip_plugin.adapters.specs import FOOLBOX
from sip_plugin.salience import GradientSalience
from tests.adapters import foolbox_rows

BUDGETS = [0.05, 0.15]


@pytest.fixture
def model(network):
    return foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")


def pgd(**options):
    return attacks.LinfPGD(steps=4, **options)


def test_every_attack_of_the_library_is_wrapped_or_refused():
    kinds = {kind for _, kind in inspect.getmembers(attacks, inspect.isclass) if issubclass(kind, Attack)} - {Attack}
    assert {kind.__name__ for kind in kinds} == set(FOOLBOX.specs) | set(FOOLBOX.refused)
    assert not set(FOOLBOX.specs) & set(FOOLBOX.refused)


def test_two_attacks_upon_one_take_turns(network, model, images, labels, salience):
    inner, patched = attacks.InversionAttack(), []

    def ask(module, arguments):
        def run():
            if call_lock(inner).acquire(blocking=False):
                call_lock(inner).release()
                patched.append("run" in vars(inner))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    network.register_forward_pre_hook(ask)
    SIPWrapper(attacks.BoundaryAttack(init_attack=inner, steps=1), salience)(model, images, labels, epsilons=None)
    assert not any(patched)
    assert "run" not in vars(inner)


def test_the_contract_runs_over_every_attack_that_can_be_wrapped():
    assert {row.name for row in foolbox_rows.TABLE} == set(FOOLBOX.specs)


@pytest.mark.parametrize("name", FOOLBOX.refused)
def test_a_refused_attack_says_why_also_inside_another(name):
    attack = getattr(attacks, name)()
    with pytest.raises(TypeError, match="cannot be made to preserve salience: it"):
        SIPWrapper(attack, torch.zeros(16, 16))
    if isinstance(attack, MinimizationAttack):
        with pytest.raises(TypeError, match="cannot be made to preserve salience"):
            SIPWrapper(attacks.BoundaryAttack(init_attack=attack), torch.zeros(16, 16))


# --- its call -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [pgd(), attacks.L2DeepFoolAttack(steps=3), pgd().repeat(2)], ids=type)
@pytest.mark.parametrize("budgets", [0.1, [0.1], [0.05, 0.1, 0.3]], ids=str)
def test_it_returns_raw_and_clipped_images_and_success_as_foolbox_does(
    attack, budgets, model, network, images, labels, salience
):
    bare = attack(model, images, labels, epsilons=budgets)
    wrapped = SIPWrapper(attack, salience)(model, images, labels, epsilons=budgets)
    assert [type(part) for part in wrapped] == [type(part) for part in bare]
    several = isinstance(budgets, list)
    for raw, clipped, success, eps in zip(
        *(part if several else [part] for part in wrapped), budgets if several else [budgets], strict=True
    ):
        assert torch.equal(raw[salience], images[salience])
        assert torch.equal(clipped[salience], images[salience])
        assert success.dtype == torch.bool
        with torch.no_grad():
            assert torch.equal(success, network(clipped).argmax(1) != labels)
        assert (attack.distance(images, clipped) <= eps * (1 + 1e-4)).all()
    assert wrapped[2].shape == bare[2].shape


def test_a_minimisation_attack_without_a_budget(model, images, labels, salience):
    raw, clipped, success = SIPWrapper(attacks.LinfDeepFoolAttack(), salience)(model, images, labels, epsilons=None)
    assert torch.equal(raw, clipped)
    assert success.any()
    with pytest.raises(NotImplementedError):  # Foolbox's own
        SIPWrapper(pgd(), salience)(model, images, labels, epsilons=None)


def test_success_is_that_of_the_preserving_image_and_salient_elements_do_not_eat_the_budget(
    model, images, labels, salience
):
    """An L2 attack whose start is random: cut to the budget as it comes, the rest of it would be smaller than allowed."""
    attack = attacks.L2PGD(steps=1, rel_stepsize=1e-6)
    _, clipped, _ = SIPWrapper(attack, salience)(model, images, labels, epsilons=0.5)
    torch.manual_seed(0)
    _, clipped, _ = SIPWrapper(attack, salience)(model, images, labels, epsilons=0.5)
    torch.manual_seed(0)
    _, bare, _ = attack(model, images, labels, epsilons=0.5)
    expected = torch.where(salience, images, bare)
    torch.testing.assert_close(clipped, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["LinfPGD", "L2PGD"])
def test_pgd_equals_a_plain_loop_that_projects_each_step(kind, model, network, images, labels, salience):
    eps, alpha = (0.1, 0.03) if kind == "LinfPGD" else (1.5, 0.4)
    attack = getattr(attacks, kind)(abs_stepsize=alpha, steps=5, random_start=False)
    point = images.clone()
    for _ in range(5):
        point.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(network(point), labels, reduction="sum"), point)
        gradient = gradient.masked_fill(salience, 0)
        if kind == "LinfPGD":
            delta = (point.detach() + alpha * gradient.sign() - images).clamp(-eps, eps)
        else:
            norms = gradient.flatten(1).norm(dim=1)[:, None, None, None]
            delta = point.detach() + alpha * gradient / norms - images
            delta = delta * (eps / delta.flatten(1).norm(dim=1)[:, None, None, None]).clamp(max=1)
        point = (images + delta).clamp(0, 1)
    _, clipped, _ = SIPWrapper(attack, salience)(model, images, labels, epsilons=eps)
    torch.testing.assert_close(clipped, point, atol=2e-6, rtol=0)


def test_inputs_and_labels_of_eagerpy_come_back_as_such(model, images, labels, salience):
    raw, _, success = SIPWrapper(pgd(), salience)(model, ep.astensor(images), ep.astensor(labels), epsilons=BUDGETS)
    assert isinstance(raw[0], ep.PyTorchTensor)
    assert isinstance(success, ep.PyTorchTensor)
    assert torch.equal(raw[0].raw[salience], images[salience])


class Scaled(nn.Module):
    def __init__(self, network, scale):
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x):
        return self.network(x / self.scale)


@pytest.mark.parametrize("setting", ["bytes", "mean and std", "flipped", "transformed bounds"])
def test_other_bounds_and_preprocessing(setting, network, images, labels, salience):
    mean, std = [0.3, 0.4, 0.5], [0.2, 0.25, 0.3]
    given, scale = images, 1.0
    if setting == "bytes":
        model, given, scale = foolbox.PyTorchModel(Scaled(network, 255), (0, 255), "cpu"), images * 255, 255.0
    elif setting == "mean and std":
        undone = nn.Sequential(Normalised(mean, std), network)
        preprocessing = {"mean": mean, "std": std, "axis": -3}
        model = foolbox.PyTorchModel(undone, (0, 1), "cpu", preprocessing)
    elif setting == "flipped":
        model = foolbox.PyTorchModel(Flipped(network), (0, 1), "cpu", {"flip_axis": -3})
    else:
        model = foolbox.PyTorchModel(network, (0, 1), "cpu").transform_bounds((-1, 1), wrapper=True)
        given, scale = images * 2 - 1, 2.0
    seen = []

    def mask_fn(x, y):
        seen.append((x, y))
        return salience

    for attack in (pgd(), attacks.LinfDeepFoolAttack(steps=5), attacks.LInfFMNAttack(steps=5)):
        _, clipped, _ = SIPWrapper(attack, mask_fn)(model, given, labels, epsilons=0.1 * scale)
        assert torch.equal(clipped[salience], given[salience])
        assert not torch.equal(clipped, given) or type(attack).__name__ == "LInfFMNAttack"  # which may find nothing
        low, high = model.bounds
        assert clipped.min() >= low
        assert clipped.max() <= high
        assert (clipped - given).abs().max() <= 0.1 * scale * (1 + 1e-5)
    for x, y in seen:
        torch.testing.assert_close(x, images, atol=1e-6, rtol=0)
        assert torch.equal(y, labels)


class Normalised(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))

    def forward(self, x):
        return x * self.std + self.mean


class Flipped(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.flip(-3))


def test_criteria(model, images, labels, salience):
    seen = []

    def mask_fn(x, y):
        seen.append(y)
        return salience

    wrapper = SIPWrapper(pgd(), mask_fn)
    by_labels = wrapper_result(wrapper, model, images, labels)
    by_criterion = wrapper_result(wrapper, model, images, Misclassification(labels))
    assert torch.equal(by_labels, by_criterion)
    target = (labels + 1) % 10
    targeted = wrapper_result(wrapper, model, images, TargetedMisclassification(target))
    assert not torch.equal(targeted, by_labels)
    assert torch.equal(seen[0], labels)
    assert torch.equal(seen[1], labels)
    assert seen[2] is None  # targets are no labels of the images


def wrapper_result(wrapper, model, images, criterion):
    torch.manual_seed(0)
    return wrapper(model, images, criterion, epsilons=0.2)[1]


def test_repeat_keeps_the_best_of_several_runs_with_one_map(model, images, labels, salience):
    asked = []

    def mask_fn(x):
        asked.append(len(x))
        return salience

    torch.manual_seed(0)
    attack = attacks.LinfAdditiveUniformNoiseAttack()
    wrapper = SIPWrapper(attack, mask_fn).repeat(3)
    assert isinstance(wrapper, Attack)
    assert wrapper.times == 3
    assert wrapper.repeat(2).times == 6
    _, clipped, success = wrapper(model, images, labels, epsilons=[0.9])
    assert asked == [6]
    assert torch.equal(clipped[0][salience], images[salience])
    torch.manual_seed(0)
    once = [SIPWrapper(attack, salience)(model, images, labels, epsilons=[0.9])[2] for _ in range(3)]
    assert torch.equal(success, torch.stack(once).any(0))


# --- what it is -----------------------------------------------------------------------------------------------------------


def test_it_is_an_attack_of_the_same_kind_with_the_attacks_own_settings(salience):
    fixed, minimal = SIPWrapper(pgd(), salience), SIPWrapper(attacks.L2DeepFoolAttack(), salience)
    assert isinstance(fixed, FixedEpsilonAttack)
    assert isinstance(minimal, MinimizationAttack)
    assert fixed.distance is fixed.wrapped.distance
    assert fixed.steps == 4
    fixed.steps = 7
    assert fixed.wrapped.steps == 7
    assert "LinfProjectedGradientDescentAttack(" in repr(fixed)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda wrapper: pickle.loads(pickle.dumps(wrapper))])
def test_a_copy_works_alike(duplicate, model, images, labels, salience):
    wrapper = SIPWrapper(pgd(), salience)
    assert torch.equal(
        wrapper_result(duplicate(wrapper), model, images, labels), wrapper_result(wrapper, model, images, labels)
    )


# --- attacks that start elsewhere -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["BoundaryAttack", "HopSkipJumpAttack", "L2BrendelBethgeAttack"])
def test_images_of_which_nothing_may_change_do_not_fail_the_others(kind, model, images, labels, salience):
    maps = salience.clone()
    maps[[0, 3]] = True
    attack = getattr(attacks, kind)(init_attack=attacks.InversionAttack(), steps=2)
    raw, clipped, success = SIPWrapper(attack, maps)(model, images, labels, epsilons=[0.5, 50.0])
    assert torch.equal(raw[0][[0, 3]], images[[0, 3]])
    assert torch.equal(clipped[1][maps], images[maps])
    assert success.shape == (2, 6)
    assert success[1].tolist() == [False, True, True, False, True, True]


@pytest.mark.parametrize(
    "budgets", [np.array([0.5, 50.0]), torch.tensor([0.5, 50.0]), (0.5, 50.0), range(1, 3)], ids=type
)
def test_budgets_of_any_kind_that_foolbox_takes(budgets, model, images, labels, salience):
    maps = salience.clone()
    maps[1] = True
    attack = attacks.BoundaryAttack(init_attack=attacks.InversionAttack(), steps=2)
    raw, clipped, success = SIPWrapper(attack, maps)(model, images, labels, epsilons=budgets)
    assert len(raw) == len(clipped) == len(success) == 2
    assert torch.equal(clipped[1][1], images[1])


def test_images_at_odd_bounds_are_not_refused_for_a_rounding_error(network, images, labels, salience):
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        low, width = (torch.rand(2, generator=generator) * 3).tolist()
        low, high = -low, width + 0.1
        model = foolbox.PyTorchModel(network, bounds=(low, high), device="cpu")
        given = images.new_full(images.shape, low) + images * (high - low)
        given = given.clamp(low, high)
        given[0, 0, 0, 0] = float(np.nextafter(np.float32(low), np.float32(9)))
        given[0, 0, 0, 1] = float(np.nextafter(np.float32(high), np.float32(-9)))
        SIPWrapper(attacks.LinfFastGradientAttack(), salience)(model, given, labels, epsilons=0.01)


def test_starting_points_go_with_their_images(model, images, labels, salience):
    maps = salience.clone()
    maps[2] = True
    attack = attacks.HopSkipJumpAttack(steps=1, initial_gradient_eval_steps=10)
    starts = 1 - images
    for wrapper in (SIPWrapper(attack, maps), SIPWrapper(attack, salience, one_by_one=True)):
        _, clipped, success = wrapper(model, images, labels, epsilons=[50.0], starting_points=starts)
        assert success[0].sum() >= 5
        assert torch.equal(clipped[0][maps & salience], images[maps & salience])
    assert torch.equal(starts, 1 - images)


def test_a_wrapped_attack_may_find_the_starting_points_of_another(model, images, labels, salience):
    top = torch.zeros(16, 16, dtype=torch.bool)
    top[:3] = True
    inner = SIPWrapper(attacks.InversionAttack(), top)
    attack = attacks.BoundaryAttack(init_attack=inner, steps=0)
    salience = few(salience)
    raw, _, _ = attack(model, images, labels, epsilons=None)
    assert torch.equal(raw[:, :, :3], images[:, :, :3])
    raw, _, _ = SIPWrapper(attack, salience)(model, images, labels, epsilons=None)
    assert torch.equal(raw[salience], images[salience])
    assert torch.equal(raw[:, :, :3], images[:, :, :3])


def few(salience):
    """Every fourth of the salient elements: starting points are found with those for all images."""
    chosen = torch.zeros_like(salience)
    chosen[..., ::4] = True
    return salience & chosen


def test_only_criteria_that_can_be_cut_are_cut(model, images, labels, salience):
    salience = few(salience)
    both = Misclassification(labels) & Misclassification(labels)
    attack = attacks.BoundaryAttack(init_attack=attacks.InversionAttack(), steps=2)
    assert SIPWrapper(attack, salience)(model, images, both, epsilons=[50.0])[2].any()
    with pytest.raises(TypeError, match="the criterion must be"):
        SIPWrapper(attack, salience, one_by_one=True)(model, images, both, epsilons=[50.0])


# --- found upstream -------------------------------------------------------------------------------------------------------


def test_newtonfool_gives_nan_that_foolbox_counts_as_success_and_the_wrapper_does_not(model, images, labels, salience):
    attack = attacks.NewtonFoolAttack(steps=20)
    raw, _, success = attack(model, images, labels, epsilons=[2.0])
    broken = raw[0].isnan().flatten(1).any(1)
    assert (broken & success[0]).any(), "mended upstream"
    with pytest.warns(RuntimeWarning, match="NaN"):
        raw, _, success = SIPWrapper(attack, salience)(model, images, labels, epsilons=[2.0])
    assert raw[0].isfinite().all()
    unchanged = (raw[0] == images).flatten(1).all(1)
    assert not (success[0] & unchanged).any()


# --- attacks of the user's own, bad arguments ----------------------------------------------------------------------


class Own(FixedEpsilonAttack):
    distance = foolbox.distances.linf

    def run(self, model, inputs, criterion, *, epsilon, **kwargs):
        x, restore = ep.astensor_(inputs)
        _, gradient = ep.value_and_grad(lambda z: ep.crossentropy(model(z), criterion.labels).sum(), x)
        return restore(ep.clip(x + epsilon * gradient.sign(), 0, 1))


class Blind(FixedEpsilonAttack):
    distance = foolbox.distances.linf

    def __call__(self, model, inputs, criterion, *, epsilons, **kwargs):
        changed = (inputs + 0.1).clamp(0, 1)
        return changed, changed, torch.zeros(len(inputs), dtype=torch.bool)

    def run(self, *args, **kwargs):
        raise NotImplementedError


def test_an_attack_of_ones_own_is_projected_at_its_queries(model, images, labels, salience):
    _, clipped, _ = SIPWrapper(Own(), salience)(model, images, labels, epsilons=0.1)
    assert torch.equal(clipped[salience], images[salience])
    assert not torch.equal(clipped, images)
    with pytest.warns(RuntimeWarning, match="without one query"):
        SIPWrapper(Blind(), salience)(model, images, labels, epsilons=0.1)


def test_maps_of_a_teacher(model, network, images, labels):
    _, clipped, _ = SIPWrapper(pgd(), GradientSalience(network))(model, images, labels, epsilons=0.2)
    maps = GradientSalience(network)(images, labels)
    assert torch.equal(clipped[maps], images[maps])
    own = torch.zeros(16, 16, dtype=torch.bool)
    changed = SIPWrapper(pgd(), GradientSalience(network))(model, images, labels, epsilons=0.2, mask=own)[1]
    assert not torch.equal(changed[maps], images[maps])


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (lambda x, y: (x * 2, y), AssertionError, None),  # Foolbox's own: outside the model's bounds
        (lambda x, y: (x[0], y), ValueError, "four dimensions"),
        (lambda x, y: (x.where(x < 0.5, torch.nan), y), ValueError, "NaN"),
        (lambda x, y: (x, y[:3]), ValueError, "labels"),
    ],
)
def test_bad_arguments_are_a_clear_error_and_leave_the_attack_usable(
    change, kind, says, model, images, labels, salience
):
    wrapper = SIPWrapper(pgd(), salience)
    with pytest.raises(kind, match=says):
        wrapper(model, *change(images, labels), epsilons=0.1)
    assert not torch.equal(wrapper(model, images, labels, epsilons=0.1)[1], images)
    with pytest.raises(ValueError, match=r"3-D|three|ambiguous"):
        SIPWrapper(pgd(), np.zeros((6, 16, 16)))(model, images, labels, epsilons=0.1)


def test_labels_of_another_number_are_foolboxs_to_refuse(model, images, labels, salience):
    def refused(attack):
        with pytest.raises(Exception) as caught:  # noqa: PT011  (whatever Foolbox raises)
            attack(model, images, labels[:3], epsilons=0.1)
        return caught.type, str(caught.value)

    assert refused(SIPWrapper(pgd(), salience)) == refused(pgd())
    assert refused(SIPWrapper(pgd(), lambda x, y: x < 0.5)) == refused(pgd())


@pytest.mark.parametrize("kind", ["LInfFMNAttack", "PointwiseAttack"])
def test_starting_points_that_the_map_makes_harmless_are_named(kind, model, images, labels, salience):
    everything = torch.ones_like(salience)
    everything[..., 0, 0] = False  # one pixel is left
    wrapper = SIPWrapper(getattr(attacks, kind)(), everything)
    starts = attacks.LinearSearchBlendedUniformNoiseAttack(steps=50).run(
        model, images, foolbox.criteria.Misclassification(labels)
    )
    with pytest.raises(ValueError, match="starting points"):
        wrapper(model, images, labels, epsilons=None, starting_points=starts)
