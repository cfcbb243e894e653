"""AutoAttack, packaged and original, through the wrapper."""

import copy
import json
import pickle
import sys
import types

import pyautoattack
import pytest
import torch
from torch import nn

from sip_plugin import SIPWrapper
from sip_plugin.salience import GradientSalience
from tests.adapters.test_contract import Counter, everything, same
from tests.conftest import small_network


class Original(pyautoattack.AutoAttack):
    """The interface of Croce and Hein's own repository (module ``autoattack``) over the packaged attacks.

    Positional arguments, ``attacks_to_run``, ``bs``, ``return_labels``, and a forward function in place of a module.
    """

    __module__ = "autoattack.autoattack"

    def __init__(self, model, norm="Linf", eps=0.3, seed=None, verbose=False, attacks_to_run=None, version="standard"):
        super().__init__(model, norm=norm, eps=eps, seed=seed, attacks=attacks_to_run or None, version=version)
        self.is_tf_model = False

    def run_standard_evaluation(self, x_orig, y_orig, bs=250, return_labels=False, state_path=None):
        x_adv, y_adv = super().run_standard_evaluation(x_orig, y_orig, batch_size=bs, state_path=state_path)
        return (x_adv, y_adv) if return_labels else x_adv

    def run_standard_evaluation_individual(self, x_orig, y_orig, bs=250, return_labels=False):
        adversarial, to_run = {}, self.attacks_to_run
        for name in to_run:
            self.attacks_to_run = [name]
            adversarial[name] = self.run_standard_evaluation(x_orig, y_orig, bs=bs, return_labels=return_labels)
        self.attacks_to_run = to_run
        return adversarial


@pytest.fixture(autouse=True)
def original_module(monkeypatch):
    module, inner = types.ModuleType("autoattack"), types.ModuleType("autoattack.autoattack")
    module.AutoAttack = inner.Original = Original
    monkeypatch.setitem(sys.modules, "autoattack", module)
    monkeypatch.setitem(sys.modules, "autoattack.autoattack", inner)


def small(attack):
    """Few steps, so that a test is quick."""
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = 5
    attack.fab.n_iter = 3
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 2
    attack.square.n_queries = 15
    return attack


def packaged(network, norm="Linf", **settings):
    eps = {"Linf": 0.12, "L2": 1.5, "L1": 12.0}[norm]
    return small(pyautoattack.AutoAttack(network, norm=norm, eps=eps, seed=0, **settings))


def original(network, norm="Linf", **settings):
    return small(Original(network, norm=norm, eps={"Linf": 0.12, "L2": 1.5, "L1": 12.0}[norm], seed=0, **settings))


def images_of(result):
    return result if isinstance(result, torch.Tensor) else result[0]


def evaluate(attack, x, y, **options):
    torch.manual_seed(0)
    return attack.run_standard_evaluation(x, y, **options)


every_package = pytest.mark.parametrize("build", [packaged, original])


@every_package
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_salient_elements_stay_the_ball_holds_and_images_fall(build, norm, network, images, labels, salience):
    attack = build(network, norm)
    adversarial = images_of(evaluate(SIPWrapper(attack, salience), images, labels))
    assert torch.equal(adversarial[salience], images[salience])
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    change = (adversarial - images).flatten(1)
    size = {"Linf": change.abs().amax(1), "L2": change.norm(dim=1), "L1": change.abs().sum(1)}[norm]
    assert (size <= attack.epsilon * (1 + 1e-4)).all()
    assert (change != 0).any()


@every_package
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_map_of_zeros_is_the_bare_attack_bit_for_bit_and_one_of_ones_the_clean_images(
    build, norm, network, images, labels
):
    counter = Counter(network).eval()
    bare = images_of(evaluate(build(counter, norm), images, labels, **batch_of_4(build)))
    calls, draws = list(counter.calls), torch.rand(3)
    counter.calls.clear()
    wrapper = SIPWrapper(build(counter, norm), torch.zeros(16, 16))
    assert torch.equal(images_of(evaluate(wrapper, images, labels, **batch_of_4(build))), bare)
    assert counter.calls == calls
    assert torch.equal(torch.rand(3), draws)
    ones = images_of(evaluate(wrapper, images, labels, mask=torch.ones(16, 16)))
    assert torch.equal(ones, images)


def batch_of_4(build):
    return {"batch_size": 4} if build is packaged else {"bs": 4}


@every_package
def test_each_step_is_projected_and_not_only_the_last(build, network, images, labels, salience):
    """Every query of every attack equals the clean image on the salient elements."""
    seen = []
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    evaluate(SIPWrapper(build(network), salience), images, labels)
    assert len(seen) > 50
    for queries in seen:
        kept = (queries[:, None] == images[None]) | ~salience[None]
        assert kept.flatten(2).all(2).any(1).all()


@every_package
def test_a_batch_at_a_time_each_image_keeps_its_own_map(build, network, digits, trained):
    x, y = digits[0][1500:1530], digits[1][1500:1530]
    mask_fn = GradientSalience(small_network(3))
    maps = mask_fn(x)
    adversarial = images_of(evaluate(SIPWrapper(build(network), mask_fn), x, y, **batch_of_4(build)))
    assert torch.equal(adversarial[maps], x[maps])
    assert not torch.equal(adversarial, x)


@every_package
def test_individual_evaluation_gives_projected_images_for_each_attack(build, network, images, labels, salience):
    attack = build(
        network, version="custom", **{"attacks" if build is packaged else "attacks_to_run": ["apgd-ce", "square"]}
    )
    result = SIPWrapper(attack, salience).run_standard_evaluation_individual(images, labels)
    assert set(result) == {"apgd-ce", "square"}
    for value in result.values():
        assert torch.equal(images_of(value)[salience], images[salience])


@every_package
@pytest.mark.parametrize("ends", ["well", "badly"])
def test_nothing_is_left_behind(build, ends, network, images, labels, salience):
    network.train()
    network[4].eval()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    attack = build(network)
    before, members = (
        everything(network),
        {name: getattr(attack, name) for name in ("apgd", "fab", "square", "apgd_targeted")},
    )
    if ends == "badly":
        attack.fab.n_iter = "many"
        with pytest.raises(TypeError):
            evaluate(SIPWrapper(attack, salience), images, labels)
    else:
        evaluate(SIPWrapper(attack, salience), images, labels)
    same(before, everything(network))
    assert all(getattr(attack, name) is member for name, member in members.items())
    assert all(network in (vars(m).get("model"), vars(m).get("predict")) for m in members.values())
    assert torch.overrides._get_current_function_mode() is None


def test_a_forward_function_in_place_of_a_module_works(network, images, labels, salience):
    def forward(x):
        return network(x)

    adversarial = evaluate(SIPWrapper(original(forward), salience), images, labels)
    torch.manual_seed(0)
    expected = original(network)
    assert torch.equal(adversarial, evaluate(SIPWrapper(expected, salience), images, labels))


@pytest.fixture
def interrupted(tmp_path, network, images, labels):
    """A state file of an evaluation that failed in the last of its four attacks, run through the wrapper."""
    attack = packaged(network)
    attack.square.n_queries = "many"
    path = tmp_path / "state.json"
    with pytest.raises(TypeError):
        SIPWrapper(attack, UPPER).run_standard_evaluation(images, labels, state_path=path)
    return path


UPPER = torch.zeros(16, 16, dtype=torch.bool)
UPPER[:8] = True


def test_the_state_file_is_written_and_the_package_itself_still_refuses_to_resume_it(
    interrupted, network, images, labels
):
    """pyautoattack 0.2.0 writes a set as its repr and then finds it different from the set; if this fails, it is mended."""
    assert len(json.loads(interrupted.read_text())["_robust_flags"]) == len(images)
    with pytest.raises(ValueError, match="different set of attacks"):
        packaged(network).run_standard_evaluation(images, labels, state_path=interrupted)


@every_package
def test_one_by_one_gives_results_of_the_same_form(build, network, images, labels, salience):
    wrapper = SIPWrapper(build(network), salience, one_by_one=True)
    adversarial = images_of(evaluate(wrapper, images, labels))
    assert adversarial.shape == images.shape
    assert torch.equal(adversarial[salience], images[salience])


@every_package
def test_it_is_an_autoattack_whose_attributes_reach_the_wrapped_one(build, network, images, labels, salience):
    attack = build(network)
    wrapper = SIPWrapper(attack, salience)
    assert isinstance(wrapper, type(attack))
    assert isinstance(wrapper, SIPWrapper)
    wrapper.epsilon = 0.2
    assert attack.epsilon == 0.2
    wrapper.attacks_to_run = ["square"]
    assert attack.attacks_to_run == ["square"]
    assert wrapper.clean_accuracy(images, labels) == 1.0
    assert "mask_fn=Tensor of shape" in repr(wrapper)


def test_copies_and_pickles_work_alike(network, images, labels, salience):
    wrapper = SIPWrapper(packaged(network), salience)
    expected = evaluate(wrapper, images, labels)[0]
    for other in (copy.copy(wrapper), copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper))):
        assert isinstance(other, pyautoattack.AutoAttack)
        assert torch.equal(evaluate(other, images, labels)[0], expected)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (lambda x, y: (x * 255, y), ValueError, r"x_orig.*\[0, 1\]"),
        (lambda x, y: (x, y[:2]), ValueError, "y_orig"),
        (lambda x, y: (x, y.float()), TypeError, "y_orig"),
        (lambda x, y: (x[0], y), ValueError, "four dimensions"),
    ],
)
def test_bad_input_is_a_clear_error(change, kind, says, network, images, labels, salience):
    with pytest.raises(kind, match=says):
        SIPWrapper(packaged(network), salience).run_standard_evaluation(*change(images, labels))


def test_one_by_one_and_a_state_file_exclude_each_other(tmp_path, network, images, labels, salience):
    with pytest.raises(ValueError, match="state_path"):
        SIPWrapper(packaged(network), salience, one_by_one=True).run_standard_evaluation(
            images, labels, state_path=tmp_path / "state"
        )


def test_a_model_of_tensorflow_is_refused(network, salience):
    attack = original(network)
    attack.is_tf_model = True
    with pytest.raises(TypeError, match="Supported are"):
        SIPWrapper(attack, salience)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_projected_autoattack_leaves_no_more_correct_images_than_late_masking(norm, trained, digits):
    x, y = digits[0][1500:1530], digits[1][1500:1530]
    salience = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5

    def correct(batch):
        with torch.no_grad():
            return int((trained(batch).argmax(1) == y).sum())

    late = torch.where(salience, x, evaluate(packaged(trained, norm), x, y)[0])
    assert correct(evaluate(SIPWrapper(packaged(trained, norm), salience), x, y)[0]) <= correct(late)


@every_package
def test_identical_images_with_different_maps_get_both_maps_and_a_consistent_result(build, network, digits):
    twin, other = digits[0][1500:1501], digits[0][1501:1502]
    x, y = torch.cat([twin, twin, other]), digits[1][[1500, 1500, 1501]]
    mask = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    mask[1, :, 1:] = True
    attack = build(network)
    options = {"batch_size": 1} if build is packaged else {"bs": 1, "return_labels": True}
    adversarial, predicted = evaluate(SIPWrapper(attack, mask), x, y, **options)
    with torch.no_grad():
        assert torch.equal(network(adversarial).argmax(1), predicted)
    assert torch.equal(adversarial[mask.expand_as(x)], x[mask.expand_as(x)])


def test_a_network_set_anew_is_projected_too_and_a_member_without_one_is_refused(network, images, labels, salience):
    wrapper = SIPWrapper(packaged(network), salience)
    wrapper.model = copy.deepcopy(network)  # the members keep the first one, as in the bare attack
    seen = []
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    evaluate(wrapper, images, labels)
    assert seen
    for queries in seen:
        kept = (queries[:, None] == images[None]) | ~salience[None]
        assert kept.flatten(2).all(2).any(1).all()
    del wrapper.wrapped.apgd.model
    with pytest.raises(TypeError, match="has no network in"):
        evaluate(wrapper, images, labels)


@every_package
def test_individual_evaluation_one_by_one_runs_every_attack_on_every_image(build, network, images, labels, salience):
    attack = build(network)
    result = SIPWrapper(attack, salience, one_by_one=True).run_standard_evaluation_individual(images, labels)
    assert list(result) == ["apgd-ce", "apgd-t", "fab-t", "square"] == attack.attacks_to_run
    assert all(len(images_of(value)) == len(images) for value in result.values())


def test_labels_of_another_integer_dtype_work(network, images, labels, salience):
    evaluate(SIPWrapper(packaged(network), salience), images, labels.int())


def test_a_network_that_writes_into_its_input_breaks_nothing(network, images, labels, salience):
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            x -= 0.3
            return self.network(x)

    before = images.clone()
    for attacks in (["square"], ["apgd-ce"]):
        attack = pyautoattack.AutoAttack(Writes(), eps=0.05, device="cpu", version="custom", attacks=attacks)
        found = SIPWrapper(attack, salience).run_standard_evaluation(images, labels)
        found = found[0] if isinstance(found, tuple) else found
        assert torch.equal(images, before)
        assert torch.equal(found[salience], images[salience])
        assert (found - images).abs().max() <= 0.0501
