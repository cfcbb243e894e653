"""AutoAttack's members are the package's own attacks, and what is saved is saved without changing what they find."""

import copy
from functools import partial
from types import SimpleNamespace

import pyautoattack
import pytest
import torch
from torch import nn

from sip_plugin.evaluation import autoattack
from sip_plugin.evaluation.attacks import run_batch, verified_norms
from sip_plugin.evaluation.autoattack import VERSIONS, attack_names, autoattack_member
from tests.evaluation.conftest import EPS, QuickAutoAttack


@pytest.fixture
def correct(trained, evaluated):
    """The images that the network gets right."""
    x, y = evaluated
    with torch.no_grad():
        right = trained(x).argmax(1) == y
    return x[right], y[right]


def member_of(model, name, version="standard", norm="Linf", classes=10):
    """One of AutoAttack's attacks, and how what it finds is verified."""
    chosen = version if name in VERSIONS.get(version, ()) else [name]
    found = autoattack_member(model, name, chosen, norm, classes)
    return found, lambda radii: partial(verified_norms, model, radii, norm)


def attacked(member, images, labels, eps, radii=EPS, done=None, seed=3):
    """Norms, examples and the number of runs done."""
    done = torch.zeros(len(images), dtype=torch.int64) if done is None else done
    attack, verify = member
    return SimpleNamespace(
        **run_batch(attack, images, labels, eps, seed, torch.arange(len(images)), done, verify(radii))
    )


def packages_verdict(model, name, images, labels, eps, norm="Linf"):
    """Which images the package's own evaluation by one attack breaks."""
    attack = QuickAutoAttack(model, norm=norm, eps=eps, version="custom", attacks=[name], seed=0)
    attack.apgd.n_restarts = attack.fab.n_restarts = 1
    return attack.run_standard_evaluation(images, labels, batch_size=len(images))[1] != labels


@pytest.mark.parametrize(("norm", "radii"), [("Linf", EPS), ("L2", (0.3, 0.6, 1.2))])
def test_one_targeted_fab_an_image_breaks_what_the_packages_runs_at_each_eps_break(
    quick, trained, correct, norm, radii
):
    member = member_of(trained, "fab-t", norm=norm)
    for ascending in (True, False):
        smallest = torch.full((len(correct[0]),), torch.inf, dtype=torch.float64)
        done = torch.zeros(len(correct[0]), dtype=torch.int64)
        for eps in sorted(radii, reverse=not ascending):
            rows = ((smallest > eps) & (done < member[0].runs)).nonzero().flatten()
            attempt = attacked(member, correct[0][rows], correct[1][rows], eps, radii, done[rows])
            done[rows], smallest[rows] = attempt.done, torch.minimum(smallest[rows], attempt.norms)
            assert torch.equal(smallest <= eps, packages_verdict(trained, "fab-t", *correct, eps, norm))
        if ascending:
            assert (done[smallest > min(radii)] == member[0].runs).all()
            assert (done[smallest <= min(radii)] < member[0].runs).any()


def test_a_finished_targeted_fab_is_not_run_again(quick, trained, correct):
    member = member_of(trained, "fab-t")
    attempt = attacked(member, *correct, 1e-6)
    assert (attempt.done == member[0].runs).all()
    calls = []
    handle = trained.register_forward_hook(lambda *_: calls.append(1))
    again = attacked(member, *correct, EPS[0], done=attempt.done)
    handle.remove()
    assert not calls
    assert again.norms.isinf().all()


def test_targets_left_out_after_an_image_broke_are_run_when_a_smaller_eps_needs_them(quick, trained, correct):
    member = member_of(trained, "fab-t")
    large = attacked(member, *correct, 1.0, radii=(0.001, 1.0))
    assert (large.done < member[0].runs).any()
    small = attacked(member, *correct, 0.001, radii=(0.001, 1.0), done=large.done)
    assert (small.done == member[0].runs).all()
    alone = attacked(member, *correct, 0.001, radii=(0.001, 1.0))
    assert torch.equal(torch.minimum(large.norms, small.norms), alone.norms)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t"])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", EPS[1]), ("L2", 0.6)])
def test_apgd_is_the_packages_but_for_where_the_random_starts_come_from(
    name, norm, eps, quick, trained, correct, monkeypatch
):
    x, y = correct[0][:5], correct[1][:5]
    version = "rand" if name == "apgd-dlr" else "standard"
    member = member_of(trained, name, norm=norm, version=version)
    ours = attacked(member, x, y, eps, (eps,))
    attack = QuickAutoAttack(trained, norm=norm, eps=eps, version=version, seed=0)
    attack.verbose = False
    runs = []

    real = torch.randn if norm == "L2" else torch.rand

    def draw(shape, generator=None):
        if generator is not None:
            return real(shape, generator=generator)
        left = [image for image in x if any(torch.equal(image, row) for row in queried[-1])]
        assert len(left) == shape[0]
        noise = torch.stack([autoattack._noise(image, norm, 3, len(runs)) for image in left])
        runs.append(shape)
        return noise if norm == "L2" else (noise + 1) / 2

    member = attack.apgd_targeted if name == "apgd-t" else attack.apgd
    queried, single_run = [], member.attack_single_run
    monkeypatch.setattr(
        member, "attack_single_run", lambda x, y, **kwargs: (queried.append(x), single_run(x, y, **kwargs))[1]
    )
    monkeypatch.setattr(torch, "randn" if norm == "L2" else "rand", draw)
    member.loss = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}[name]
    with torch.no_grad():
        theirs = member.perturb(x.clone(), y.clone())
        broken = trained(theirs).argmax(1) != y
    assert runs
    assert torch.equal(ours.norms.isfinite(), broken)
    assert torch.allclose(ours.examples[broken], theirs[broken], atol=1e-6)


def test_square_on_one_image_is_the_packages(quick, trained, correct):
    broken, seed = 0, 11
    for x, y in zip(*(part[:6].split(1) for part in correct), strict=True):
        for norm, eps in (("Linf", 0.3), ("L2", 5.0)):
            member = member_of(trained, "square", norm=norm)
            ours = attacked(member, x, y, eps, (eps,), seed=seed)
            member = QuickAutoAttack(trained, norm=norm, eps=eps, version="standard", seed=seed).square
            member.seed = seed
            with torch.no_grad():
                theirs = member.perturb(x.clone(), y.clone())
                assert bool(ours.norms.isfinite()) == bool(trained(theirs).argmax(1) != y)
            if ours.norms.isfinite():
                broken += 1
                assert torch.allclose(ours.examples, theirs, atol=1e-6)
    assert broken > 2


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square"])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", EPS[1]), ("L2", 0.8)])
def test_what_is_found_for_an_image_does_not_depend_on_its_batch(name, norm, eps, quick, correct):
    # In float64, where the rounding of other batch sizes cannot decide anything; AutoAttack itself works in float32.
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(294, 10))
    model = Double(inner)
    x = correct[0]
    with torch.no_grad():
        y = model(x).argmax(1)
    member = member_of(model, name, norm=norm)
    together = attacked(member, x, y, eps, (eps,))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    for rows in order.split(4):
        part = attacked(member, x[rows], y[rows], eps, (eps,))
        assert torch.allclose(part.norms, together.norms[rows], atol=1e-6)
        assert torch.allclose(part.examples, together.examples[rows], atol=1e-6)
    if name != "square":
        assert together.norms.isfinite().any()


class Double(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner.double()

    def forward(self, x):
        return self.inner(x.double()).float()


def test_another_seed_is_another_attack(quick, trained, correct):
    for name in ("apgd-ce", "square"):
        member = member_of(trained, name)
        one, other = (attacked(member, *correct, 0.2, radii=(0.2,), seed=seed) for seed in (1, 2))
        again = attacked(member, *correct, 0.2, radii=(0.2,), seed=1)
        assert torch.equal(one.examples, again.examples)
        assert not torch.equal(one.examples, other.examples)


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_every_stage_has_the_settings_with_which_the_package_runs_it(version, trained, images, labels, monkeypatch):
    """The package's own evaluation, with attacks that only say how they are set."""
    theirs = []

    def note(member, name):
        kept = ("n_restarts", "n_iter", "eps", "norm", "loss", "eot_iter", "n_target_classes", "n_queries", "targeted")
        kept += ("thr_decr", "alpha_max", "eta", "beta", "p_init", "rescale_schedule", "use_largereps")
        return name, {key: vars(member)[key] for key in kept if key in vars(member)}

    attack = pyautoattack.AutoAttack(trained, eps=0.1, version=version, seed=0)
    for member in (attack.apgd, attack.apgd_targeted, attack.fab, attack.square):
        monkeypatch.setattr(member, "perturb", lambda x, y, member=member: (theirs.append(note(member, None)[1]), x)[1])
    attack.run_standard_evaluation(images, labels, batch_size=6)
    assert list(VERSIONS[version]) == attack.attacks_to_run
    made = [autoattack._member(trained, name, version, "Linf", 10, 0.1) for name in VERSIONS[version]]
    assert [note(member, None)[1] for member in made] == theirs


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("version", ["standard", "plus"])
def test_networks_of_few_classes_are_attacked_by_every_stage(classes, version, quick):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).eval()
    x = torch.rand(12, 3, 4, 4)
    with torch.no_grad():
        y = model(x).argmax(1)
    for name in VERSIONS[version]:
        member = autoattack_member(model, name, version, "Linf", classes)
        attempt = attacked(
            (member, lambda radii: partial(verified_norms, model, radii, "Linf")), x, y, 0.3, radii=(0.3,)
        )
        assert (attempt.norms <= 0.3).float().mean() > (0 if member.name == "square" else 0.5), member.name
        assert bool(member.notes) == (classes < {"apgd-t": 4, "apgd-dlr": 3}.get(member.name, 0))


def test_versions_and_lists_of_attacks():
    assert attack_names("standard") == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert attack_names(["square", "apgd-ce"]) == ("square", "apgd-ce")
    with pytest.raises(ValueError, match="standard, plus, rand"):
        attack_names("strong")
    for wrong in ([], ["pgd"]):
        with pytest.raises(ValueError, match="a list of attacks"):
            attack_names(wrong)


def test_a_missing_package_is_named(monkeypatch):
    for name in ("pyautoattack", "autoattack"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ImportError, match=r"sip-plugin\[autoattack\]"):
        autoattack.autoattack_package()


def test_the_original_package_is_found(monkeypatch):
    """It takes ``attacks_to_run`` and ``verbose``, and its device is CUDA unless said."""
    import importlib.machinery
    import sys
    import types

    class Original(pyautoattack.AutoAttack):
        def __init__(self, model, norm="Linf", eps=0.3, seed=None, verbose=True, attacks_to_run=(), version="standard",
                     is_tf_model=False, device="cuda", log_path=None):  # fmt: skip
            assert not verbose
            super().__init__(model, norm=norm, eps=eps, seed=seed, version=version, device=device)

    module = types.ModuleType("autoattack")
    module.AutoAttack, module.__spec__ = Original, importlib.machinery.ModuleSpec("autoattack", None)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "autoattack", module)
    member = autoattack._member(nn.Flatten(), "square", "standard", "Linf", 10, 0.1)
    assert member.device == torch.device("cpu")


def test_attacking_changes_no_image(quick, trained, correct):
    before = copy.deepcopy(correct)
    for name in ("apgd-ce", "apgd-t", "fab-t", "square"):
        attacked(member_of(trained, name), *correct, EPS[2])
        assert torch.equal(correct[0], before[0])
        assert torch.equal(correct[1], before[1])
