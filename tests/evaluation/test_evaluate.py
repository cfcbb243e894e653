"""evaluate_robustness: nested balls, any kind of data, and everything left as it was found."""

import copy
import itertools
import logging
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sip_plugin.evaluation import RobustnessReport, evaluate_robustness
from sip_plugin.evaluation.attacks import perturbation_norms
from sip_plugin.model_utils import model_hash
from tests.adapters.test_contract import everything
from tests.adapters.test_contract import same as unchanged
from tests.evaluation.conftest import EPS, same
from tests.test_folding import DataDependent

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")


def evaluate(model, data, **options):
    return evaluate_robustness(model, data, **({"eps": EPS, "progress": False} | options))


def robust(report):
    return torch.stack(list(report.correct.values()))


@pytest.fixture
def report(quick, network, evaluated):
    return evaluate(network, evaluated, return_adversarial=True)


def test_the_report_says_what_happened_to_every_image(report, network, evaluated):
    x, y = evaluated
    assert isinstance(report, RobustnessReport)
    assert report.eps == EPS
    assert report.attacks == STAGES
    assert torch.equal(report.labels, y)
    assert report.norms.shape == (len(STAGES), len(x))
    with torch.no_grad():
        wrong = network(x).argmax(1) != y
    assert wrong[1]
    assert torch.equal(~report.correct_clean, wrong)
    assert torch.equal((report.norms == 0).all(0), wrong)
    assert torch.equal((report.norms == 0).any(0), wrong)
    assert not report.assumed.any()
    counts = robust(report).sum(1).tolist()
    assert counts == sorted(counts, reverse=True)
    assert 0 < counts[-1] < counts[0] <= len(x)
    assert report.seconds > 0
    assert report.settings["attack"]["autoattack"]["attacks"] == list(STAGES)
    assert report.settings["assume_survivors"] is False


def test_every_adversarial_image_is_in_its_ball_and_fools_the_network(report, network, evaluated):
    x, y = evaluated
    assert set(report.adversarial) == set(EPS)
    for ball, eps in enumerate(EPS):
        adversarial, broken = report.adversarial[eps], report.correct_clean & ~report.correct[eps]
        norms = perturbation_norms(adversarial, x, "Linf")
        assert broken.any()
        assert (norms <= eps).all()
        assert (norms[broken] > 0).all()
        assert torch.equal(norms[broken], report.smallest_norm[broken])
        assert torch.equal(adversarial[~broken], x[~broken])
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        with torch.no_grad():
            assert torch.equal(network(adversarial).argmax(1) != y, ~robust(report)[ball])


def test_an_image_broken_at_one_eps_is_not_attacked_at_a_larger_one(network, evaluated):
    seen = {}
    report = evaluate(
        network, evaluated, attack=lambda model, eps: fast_gradient(model, eps, seen), sanity_checks=False
    )
    for smaller, eps in itertools.pairwise(EPS):
        assert torch.equal(seen[eps], evaluated[0][report.correct[smaller]])


def fast_gradient(model, eps, seen):
    def attack(images, labels):
        seen[eps] = images.clone()
        images.requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(model(images), labels), images)[0]
        return (images + eps * gradient.sign()).clamp(0, 1).detach()

    return attack


def test_assumed_survivors_are_marked_and_never_where_an_attack_broke_them(quick, network, evaluated, report):
    assumed = evaluate(network, evaluated, assume_survivors=True)
    assert assumed.assumed[assumed.correct[EPS[-1]]].all()
    assert assumed.assumed.any()
    assert not assumed.assumed[~assumed.correct[EPS[0]]].any()
    assert assumed.settings["assume_survivors"] is True
    assert torch.equal(robust(assumed), robust(report))


def test_no_image_counts_as_robust_that_a_run_of_the_package_breaks(quick, network, evaluated, report):
    x, y = evaluated
    assumed = evaluate(network, evaluated, assume_survivors=True)
    for ball, eps in enumerate(EPS):
        attack = quick(network, eps=eps, version="standard", seed=0)
        package = attack.run_standard_evaluation(x, y, batch_size=len(x))[1] == y
        assert robust(report)[ball].sum() <= package.sum()
        assert robust(assumed)[ball].sum() <= package.sum()


def test_fewer_passes_than_the_packages_runs(quick, network, evaluated):
    x, y = evaluated
    passes = 0

    def count(_, inputs):
        nonlocal passes
        passes += len(inputs[0])

    network.register_forward_pre_hook(count)
    spent = {}
    for name, options in {"default": {}, "assumed": {"assume_survivors": True}}.items():
        passes = 0
        evaluate(network, evaluated, sanity_checks=False, **options)
        spent[name] = passes
    passes = 0
    for eps in EPS:
        quick(network, eps=eps, version="standard", seed=0).run_standard_evaluation(x, y, batch_size=len(x))
    assert spent["default"] < 0.9 * passes
    assert spent["assumed"] < spent["default"]


@pytest.mark.parametrize("assume", [False, True])
def test_the_batch_size_changes_nothing(quick, network, evaluated, assume):
    whole = evaluate(network, evaluated, assume_survivors=assume)
    parts = evaluate(network, evaluated, assume_survivors=assume, batch_size=7)
    assert torch.equal(robust(whole), robust(parts))
    assert torch.allclose(whole.smallest_norm, parts.smallest_norm, atol=1e-5)


def test_the_order_of_the_images_changes_nothing(quick, network, evaluated):
    order = torch.randperm(len(evaluated[0]), generator=torch.Generator().manual_seed(0))
    one, other = evaluate(network, evaluated), evaluate(network, [part[order] for part in evaluated])
    assert torch.equal(robust(one)[:, order], robust(other))


def test_equal_seeds_give_equal_reports(quick, network, evaluated, report):
    torch.manual_seed(99)
    same(evaluate(network, evaluated, return_adversarial=True), report)


def test_l2_balls(quick, network, evaluated):
    x, y = evaluated
    radii = (0.3, 0.6, 1.2)
    report = evaluate(network, evaluated, eps=radii, norm="L2", return_adversarial=True)
    assert report.norm == "L2"
    for ball, eps in enumerate(radii):
        assert (perturbation_norms(report.adversarial[eps], x, "L2") <= eps).all()
        with torch.no_grad():
            assert torch.equal(network(report.adversarial[eps]).argmax(1) == y, robust(report)[ball])
    assert robust(report)[0].sum() > robust(report)[-1].sum()


def test_the_settings_say_which_network_it_was_and_whether_it_was_checked(network, evaluated):
    options = {"attack": lambda model, eps: lambda x, y: x}
    checked, unchecked = (evaluate(network, evaluated, sanity_checks=check, **options) for check in (True, False))
    assert checked.settings["network"] == unchecked.settings["network"] == model_hash(network)
    assert (checked.settings["sanity_checks"], unchecked.settings["sanity_checks"]) == (True, False)
    said = "not checked for signs of overestimated robustness"
    assert said in " ".join(str(unchecked).split())
    assert said not in " ".join(str(checked).split())
    text = RobustnessReport.compare({"A": checked, "B": unchecked}).to_text()
    assert f"Warning (B): {said}" in " ".join(text.split())
    assert "Warning (A" not in text


def test_a_loader_is_as_good_as_tensors(quick, network, evaluated):
    options = {"version": ["apgd-ce", "fab-t"]}
    pair = evaluate(network, evaluated, **options)
    same(evaluate(network, DataLoader(TensorDataset(*evaluated), batch_size=6), **options), pair)
    maps = [(x, y, torch.ones(1)) for x, y in zip(*(part.split(6) for part in evaluated), strict=True)]
    same(evaluate(network, (batch for batch in maps), **options), pair)
    same(evaluate(network, list(evaluated), **options), pair)
    first = evaluate(network, [part[:8] for part in evaluated], **options)
    same(evaluate(network, maps, max_images=8, **options), first)
    same(evaluate(network, evaluated, max_images=8, **options), first)
    assert first.settings["images"] == 8


def test_a_loader_draws_no_number_of_the_callers(quick, network, evaluated):
    before = torch.get_rng_state()
    evaluate(network, DataLoader(TensorDataset(*evaluated), batch_size=6), version=["apgd-ce"])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_determines_what_a_random_network_does(network, evaluated):
    class Random(nn.Module):
        def forward(self, images):
            return network(F.dropout(images, 0.7, training=True))

    found = []
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(state)
        report = evaluate(Random(), evaluated, attack=lambda model, eps: lambda x, y: x, seed=seed, sanity_checks=False)
        found.append(report.correct_clean)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(mode, quick, network, evaluated, report):
    with mode():
        inside = [part.clone() for part in evaluated]
        same(evaluate(network, inside, return_adversarial=True), report)
        assert not torch.is_grad_enabled()


class InterruptError(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_left_as_it_was_found(fails, quick, network, evaluated):
    network.train()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    network[3].weight.grad = torch.ones_like(network[3].weight)
    before, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    logger = logging.getLogger("auto-attack")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    passes = 0

    def stop(*_):
        nonlocal passes
        passes += 1
        if fails and passes > 40:
            raise InterruptError

    hook = network.register_forward_hook(stop)
    try:
        evaluate(network, evaluated)
        assert not fails
    except InterruptError:
        assert fails
    hook.remove()
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [p.requires_grad for p in network.parameters()] == [False, *[True] * 9]
    assert [p.grad is not None for p in network.parameters()] == [False] * 4 + [True] + [False] * 5
    assert (network[3].weight.grad == 1).all()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert not logger.disabled


def test_a_network_in_train_mode_is_evaluated_in_eval_mode(quick, network, evaluated, report):
    same(evaluate(network.train(), evaluated, return_adversarial=True), report)
    assert network.training


def test_a_compiled_network(quick, network, evaluated, report):
    compiled = torch.compile(network, backend="eager")
    plain = evaluate(network, evaluated, fold_batchnorm=False)
    same(evaluate(compiled, evaluated), plain)  # is not folded


def test_networks_in_float64_and_without_parameters(quick, network, evaluated, report):
    class Double(nn.Module):
        def forward(self, x):
            return inner(x.double()).float()

    inner = copy.deepcopy(network).double()
    found = evaluate(Double(), evaluated)
    assert (robust(found) != robust(report)).any(0).sum() <= 1


def test_nothing_is_printed_without_progress(quick, network, evaluated, capfd, caplog):
    evaluate(network, evaluated, version=["apgd-t"])
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_progress_is_shown_if_asked(quick, network, evaluated, capfd):
    evaluate(network, evaluated, version=["apgd-ce"], progress=True)
    assert "100%" in capfd.readouterr().err


def test_progress_without_tqdm_is_a_sentence(quick, network, evaluated, capfd, monkeypatch):
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.warns(UserWarning, match=r"sip-plugin\[progress\]"):
        evaluate(network, evaluated, version=["apgd-ce"], progress=True)
    assert capfd.readouterr().err == ""


def test_images_that_are_all_wrong_need_no_attack(quick, network, evaluated):
    x, _ = evaluated
    with torch.no_grad():
        wrong = (network(x).argmax(1) + 1) % 10
    report = evaluate(network, (x, wrong))
    assert (report.norms == 0).all()


def test_illegal_networks_are_errors(quick, network, evaluated):
    with pytest.raises(ValueError, match="logits"):
        evaluate(nn.Identity(), evaluated)
    with pytest.raises(ValueError, match="below 10, the network's number of classes, got 10"):
        evaluate(network, (evaluated[0], torch.full_like(evaluated[1], 10)))

    class NaN(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * float("nan")

    with pytest.raises(ValueError, match="NaN"):
        evaluate(NaN(), evaluated)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_images_may_be_of_any_memory_layout(norm, quick, network, evaluated):
    x, y = evaluated[0][:6], evaluated[1][:6]
    other = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for version in ("standard", ["apgd-dlr"]):
        found = [evaluate(network, (each, y), eps=0.05, norm=norm, version=version) for each in (x, other)]
        assert torch.equal(found[0].norms, found[1].norms)


class WritesIntoItsInput(nn.Module):
    def __init__(self, network, writes):
        super().__init__()
        self.network, self.writes = network, writes

    def forward(self, x):
        if self.writes:
            x -= 0.1
        return self.network(x if self.writes else x - 0.1)


def test_a_network_may_write_into_its_input(quick, network, evaluated):
    x, y = evaluated[0][:6].clone(), evaluated[1][:6]
    attacks = {"autoattack": "autoattack", "pgd": lambda model, eps: torchattacks.PGD(model, eps=eps, steps=2)}
    found = [
        evaluate(WritesIntoItsInput(network, writes), (x, y), eps=0.05, attack=attacks, return_adversarial=True)
        for writes in (True, False)
    ]
    assert torch.equal(x, evaluated[0][:6])
    assert torch.equal(found[0].norms, found[1].norms)
    assert torch.equal(found[0].adversarial[0.05], found[1].adversarial[0.05])


def test_so_may_a_compiled_one(network, evaluated):
    pair = [part[:6] for part in evaluated]
    attack = {"attack": lambda model, eps: torchattacks.PGD(model, eps=eps, steps=2)}
    compiled = torch.compile(WritesIntoItsInput(network, True).eval(), backend="eager")
    found = [evaluate(model, pair, **attack) for model in (compiled, WritesIntoItsInput(network, False))]
    assert torch.equal(found[0].norms, found[1].norms)
    assert not compiled._forward_pre_hooks


def test_a_network_without_a_gradient_is_an_error_before_the_work(quick, evaluated):
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    blind = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    with pytest.raises(ValueError, match="no gradient with respect to the image"):
        evaluate(blind, evaluated, eps=0.05)
    assert len(evaluate(blind, evaluated, eps=0.05, version=["square"])) == 20


@pytest.mark.parametrize(
    "size", [(7, 7), (8, 8), (12, 12), (14, 14), (19, 19), (24, 24), (28, 28), (32, 32), (24, 32), (32, 24)]
)
def test_square_in_l2_is_refused_before_the_work_where_it_would_fail(size, quick):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))
    square = quick(network, norm="L2", eps=0.5, seed=0, device="cpu").square
    x, y = torch.rand(2, 3, *size), torch.zeros(2, dtype=torch.int64)
    y = network(x).argmax(1)
    try:
        square.perturb(x, y)
        fails = False
    except RuntimeError:
        fails = True
    if fails:
        with pytest.raises(ValueError, match="Square fails in L2"):
            evaluate(network, (x, y), eps=0.5, norm="L2")
        evaluate(network, (x, y), eps=0.5, norm="L2", version=["apgd-ce"])
    else:
        evaluate(network, (x, y), eps=0.5, norm="L2", version=["square"])


def test_attacks_work_on_the_folded_network_and_their_examples_are_verified_on_the_network_itself(network, evaluated):
    seen = []

    def factory(model, eps):
        assert type(model) is type(network)
        seen.append(sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()))

        def attack(images, labels):
            seen.append((model(images) - network(images)).abs().max().item())
            return (images + eps * (model(images).argmax(1) % 2 * 2 - 1).view(-1, 1, 1, 1)).clamp(0, 1)

        return attack

    before = everything(network)
    found = evaluate(network, evaluated, attack=factory)
    unchanged(before, everything(network))
    assert seen[0] == 0
    assert max(seen) < 1e-4
    assert found.settings["fold_batchnorm"] is True
    seen.clear()
    plain = evaluate(network, evaluated, attack=factory, fold_batchnorm=False)
    assert seen[0] == 2
    assert plain.settings["fold_batchnorm"] is False
    assert torch.equal(plain.norms, found.norms)


@pytest.mark.parametrize(("fold", "notes"), [("auto", 0), (True, 1)])
def test_a_network_that_cannot_be_folded_is_attacked_as_it_is(fold, notes, network, evaluated):
    found = evaluate(DataDependent(network), evaluated, attack=lambda model, eps: lambda x, y: x, fold_batchnorm=fold)
    assert found.settings["fold_batchnorm"] is False
    assert sum("trace" in warning for warning in found.warnings) == notes
