"""What is ART's own: its base class and settings, classifiers with preprocessing, masks, trainers, what is refused."""

import copy
import inspect
import pickle
from contextlib import nullcontext

import art.attacks.evasion as evasion
import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.poisoning import PoisoningAttackBackdoor
from art.defences.preprocessor import SpatialSmoothing
from art.defences.trainer import AdversarialTrainer, AdversarialTrainerAWPPyTorch, AdversarialTrainerTRADESPyTorch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork
from art.summary_writer import SummaryWriter
from torch import nn

from sip_plugin import SIPWrapper
from sip_plugin.adapters.specs import ART
from sip_plugin.salience import GradientSalience
from tests.adapters import art_rows
from tests.adapters.art_rows import classifier, one_hot

NUMPY_2 = int(np.__version__.split(".")[0]) >= 2  # a float64 scalar of NumPy 1 leaves an array in float32
QUIET = {"verbose": False}
LINF = {"eps": 0.1, "eps_step": 0.03, "max_iter": 4, **QUIET}


@pytest.fixture
def x(images):
    return images.numpy()


@pytest.fixture
def y(labels):
    return one_hot(labels)


@pytest.fixture
def salient(salience):
    return salience.numpy()


def pgd(network, salience=None, **options):
    return SIPWrapper(evasion.ProjectedGradientDescent(classifier(network), **{**LINF, **options}), salience)


# --- the tables ---------------------------------------------------------------------------------------------------------


def test_every_evasion_attack_of_the_library_is_wrapped_or_refused():
    kinds = [kind for _, kind in inspect.getmembers(evasion, inspect.isclass) if issubclass(kind, EvasionAttack)]
    assert {kind.__name__ for kind in kinds} == set(ART.specs) | set(ART.refused)
    assert not set(ART.specs) & set(ART.refused)


def test_the_contract_runs_over_every_attack_that_can_be_wrapped():
    broken_upstream = {"GeoDA"}
    assert {row.name for row in art_rows.TABLE} == set(ART.specs) - broken_upstream


@pytest.mark.parametrize("name", ART.refused)
def test_a_refused_attack_says_why(name):
    attack = object.__new__(getattr(evasion, name))
    with pytest.raises(TypeError, match="cannot be made to preserve salience: it") as error:
        SIPWrapper(attack, np.zeros((16, 16)))
    assert ART.refused[name] in str(error.value)


def test_what_is_no_evasion_attack_or_not_on_pytorch_is_refused(network):
    with pytest.raises(TypeError, match="no evasion attack"):
        SIPWrapper(PoisoningAttackBackdoor(lambda x: x), None)
    black_box = BlackBoxClassifierNeuralNetwork(lambda x: x.reshape(len(x), -1)[:, :10], (3, 16, 16), 10)
    with pytest.raises(TypeError, match="PyTorchClassifier"):
        SIPWrapper(evasion.BoundaryAttack(black_box, targeted=False), None)
    with pytest.raises(TypeError, match="the class"):
        SIPWrapper(evasion.ProjectedGradientDescent, None)
    nested = evasion.AutoAttack(classifier(network), attacks=[evasion.SpatialTransformation(classifier(network))])
    with pytest.raises(TypeError, match="moves pixels"):
        SIPWrapper(nested, None)


# --- found upstream: each of these tests notices when it is mended -------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "HopSkipJump",
        "BoundaryAttack",
        pytest.param("BrendelBethgeAttack", marks=pytest.mark.xdist_group("numba")),
    ],
)
def test_attacks_that_ask_in_float64_crash_bare_on_numpy_2_and_work_wrapped(name, network, x, y, salient):
    row = next(row for row in art_rows.TABLE if row.name == name)
    attack = getattr(evasion, name)(classifier(network), **row.arguments)
    with pytest.raises(RuntimeError, match=r"double|Double|dtype") if NUMPY_2 else nullcontext():
        attack.generate(x, y)
    adversarial = SIPWrapper(attack, salient).generate(x, y, **row.options(x))
    assert (adversarial != x).any()
    assert (adversarial[salient] == x[salient]).all()


def test_brendel_bethge_says_what_to_do_where_it_finds_no_start(network, x, y):
    attack = evasion.BrendelBethgeAttack(classifier(network), norm=2, steps=2, init_size=1, batch_size=6)
    nearly_all = np.ones((16, 16), dtype=bool)
    nearly_all[0, 0] = False
    with pytest.raises(ValueError, match="x_adv_init"):
        SIPWrapper(attack, nearly_all).generate(x, y)


def test_geoda_fails_bare_on_numpy_2_and_works_where_numpy_has_what_it_needs(
    network, x, y, salient, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)  # it writes a file into the working folder
    attack = evasion.GeoDA(classifier(network), max_iter=1000, sub_dim=5, **QUIET)
    with pytest.raises(AttributeError, match="mat") if NUMPY_2 else nullcontext():
        attack.generate(x[:2], y[:2])
    monkeypatch.setattr(np, "mat", np.asmatrix, raising=False)
    adversarial = SIPWrapper(attack, salient[:2]).generate(x[:2], y[:2])
    assert (adversarial != x[:2]).any()
    assert (adversarial[salient[:2]] == x[:2][salient[:2]]).all()
    assert np.array_equal(SIPWrapper(attack, np.ones((16, 16))).generate(x[:2], y[:2]), x[:2])  # and ends


@pytest.mark.parametrize(
    "name", ["AutoProjectedGradientDescent", "AutoConjugateGradient", "RescalingAutoConjugateGradient"]
)
def test_the_auto_attacks_own_mask_leaves_the_random_start_unmasked(name, network, x, y):
    allowed = np.zeros((3, 16, 16), dtype=np.float32)
    allowed[:, :8] = 1
    options = {"eps": 0.3, "eps_step": 0.1, "max_iter": 2, "nb_random_init": 1, "batch_size": 8, **QUIET}
    attack = getattr(evasion, name)(classifier(network), **options)
    forbidden = np.broadcast_to(allowed == 0, x.shape)
    bare = attack.generate(x, y, mask=allowed)
    assert (bare[forbidden] != x[forbidden]).any(), "mended upstream: its own mask can be used"
    wrapped = SIPWrapper(attack, np.zeros((16, 16))).generate(x, y, mask=allowed)
    assert (wrapped[forbidden] == x[forbidden]).all()
    assert (wrapped != x).any()


# --- the face of an EvasionAttack ---------------------------------------------------------------------------------------


def test_it_is_an_evasion_attack_with_the_attacks_own_settings(network, salient):
    estimator = classifier(network)
    attack = evasion.ProjectedGradientDescent(estimator, targeted=True, **LINF)
    wrapper = SIPWrapper(attack, salient)
    assert isinstance(wrapper, EvasionAttack)
    assert isinstance(wrapper, SIPWrapper)
    assert wrapper.estimator is estimator
    assert wrapper.targeted is True
    assert wrapper.attack_params == attack.attack_params
    assert wrapper.summary_writer is None
    assert wrapper.is_estimator_valid(estimator, wrapper.estimator_requirements)
    assert "ProjectedGradientDescent(" in repr(wrapper)
    with pytest.raises(ValueError, match="cannot be set"):
        wrapper.set_params(no_such_parameter=1)


@pytest.mark.parametrize("way", ["attribute", "set_params"])
def test_a_new_setting_reaches_the_inner_attack_too(way, network, x, y):
    wrapper = pgd(network, np.zeros((16, 16)))
    if way == "attribute":
        wrapper.eps = 0.04
    else:
        wrapper.set_params(eps=0.04)
    assert wrapper.eps == wrapper.wrapped.eps == wrapper.wrapped._attack.eps == 0.04
    assert np.abs(wrapper.generate(x, y) - x).max() == pytest.approx(0.04, abs=1e-6)
    with pytest.raises(ValueError, match="eps"):
        wrapper.eps = -1.0


class Recorder(SummaryWriter):
    """Keeps what is written."""

    def __init__(self):
        self.steps = []

    @property
    def summary_writer(self):
        return self

    def update(self, batch_id, global_step, grad=None, x=None, **kwargs):
        self.steps.append((grad, x))

    def reset(self):
        pass


def test_the_summary_writer_sees_the_projected_gradient(network, x, y, salient):
    recorder = Recorder()
    attack = evasion.ProjectedGradientDescent(classifier(network), summary_writer=recorder, **LINF)
    wrapper = SIPWrapper(attack, salient)
    wrapper.generate(x, y)
    assert wrapper.summary_writer is recorder
    assert len(recorder.steps) == 4
    for gradient, point in recorder.steps:
        assert not gradient[salient].any()
        assert np.array_equal(point[salient], x[salient])


def test_the_classifier_stays_usable_for_others_during_a_call(network, x, y):
    estimator, other = classifier(network), []

    class Asking(nn.Module):
        def forward(self, z):
            other.append(set(vars(estimator)))
            return network(z)

    attack = evasion.SquareAttack(classifier(Asking()), eps=0.1, max_iter=2, **QUIET)
    estimator = attack.estimator
    whole = set(vars(estimator))
    SIPWrapper(attack, np.zeros((16, 16))).generate(x, y)
    assert all(seen == whole for seen in other[1:])
    assert set(vars(estimator)) == whole


def test_a_copys_settings_are_its_own(network, salient):
    wrapper = pgd(network, salient)
    duplicate = copy.copy(wrapper)
    duplicate.set_params(eps=0.07)
    assert wrapper.eps == wrapper.wrapped._attack.eps == 0.1
    assert duplicate.wrapped._attack.eps == 0.07


@pytest.mark.parametrize("name", ["ProjectedGradientDescent", "FastGradientMethod"])
def test_budgets_of_each_image_go_with_it(name, network, x, y, salient):
    eps = np.linspace(0.02, 0.2, 6, dtype=np.float32)[:, None, None, None]
    options = {"eps_step": eps, "batch_size": 4} | ({**QUIET, "max_iter": 3} if name != "FastGradientMethod" else {})
    attack = getattr(evasion, name)(classifier(network), eps=eps, **options)
    for one_by_one in (False, True):
        adversarial = SIPWrapper(attack, salient, one_by_one=one_by_one).generate(x, y)
        sizes = np.abs(adversarial - x).max((1, 2, 3))
        assert (sizes <= eps.ravel() + 1e-6).all()
        assert (sizes > 0.9 * eps.ravel()).all()
    assert attack.eps is eps


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda wrapper: pickle.loads(pickle.dumps(wrapper))])
def test_a_copy_works_alike(duplicate, network, x, y, salient):
    wrapper = pgd(network, salient)
    assert np.array_equal(duplicate(wrapper).generate(x, y), wrapper.generate(x, y))


def test_progress_is_of_the_whole_batch_and_the_setting_stays(network, x, y, salient, capfd):
    attack = evasion.HopSkipJump(classifier(network), max_iter=1, max_eval=10, init_eval=10, init_size=20, verbose=True)
    SIPWrapper(attack, salient).generate(x, y)
    shown = capfd.readouterr().err
    assert "6/6" in shown
    assert "1/1" not in shown
    assert attack.verbose is True
    attack.verbose = False
    SIPWrapper(attack, salient).generate(x, y)
    assert not capfd.readouterr().err


def test_a_batch_is_attacked_in_the_attacks_own_pieces_and_not_image_by_image(trained, digits):
    x, y = digits[0][:64].numpy(), one_hot(digits[1][:64])
    rows = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = trained

        def forward(self, z):
            rows.append(len(z))
            return self.network(z)

    for attack in (
        evasion.ProjectedGradientDescent(classifier(Counting()), **LINF),
        evasion.FastGradientMethod(classifier(Counting())),
        evasion.DeepFool(classifier(Counting()), max_iter=2, batch_size=32, **QUIET),
    ):
        rows.clear()
        SIPWrapper(attack, np.zeros((16, 16))).generate(x, y)
        assert min(rows) >= 32


# --- steps, exactly -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ProjectedGradientDescentNumpy", "ProjectedGradientDescentPyTorch"])
@pytest.mark.parametrize("norm", [np.inf, 2])
def test_pgd_equals_a_plain_loop_that_projects_each_step(kind, norm, network, x, y, salient):
    eps, alpha = (0.1, 0.03) if norm == np.inf else (1.0, 0.4)
    attack = getattr(evasion, kind)(classifier(network), norm=norm, eps=eps, eps_step=alpha, max_iter=5, **QUIET)
    point = torch.from_numpy(x)
    clean, marked, target = point.clone(), torch.from_numpy(salient), torch.from_numpy(y).argmax(1)
    for _ in range(5):
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(network(point), target), point)
        gradient = gradient.masked_fill(marked, 0)
        norms = gradient.flatten(1).norm(dim=1)[:, None, None, None]
        gradient = gradient / norms if norm == 2 else gradient.sign()
        delta = (point.detach() + alpha * gradient).clamp(0, 1) - clean
        if norm == 2:
            size = delta.flatten(1).norm(dim=1)[:, None, None, None]
            delta = delta * (eps / size).clamp(max=1)
        else:
            delta = delta.clamp(-eps, eps)
        point = clean + delta
    adversarial = SIPWrapper(attack, salient).generate(x, y)
    np.testing.assert_allclose(adversarial, point.numpy(), atol=2e-6)
    assert np.array_equal(adversarial[salient], x[salient])


def test_identical_images_in_one_piece_keep_their_own_maps(network, x, y):
    same, labels = np.repeat(x[:1], 6, 0), np.repeat(y[:1], 6, 0)
    maps = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(3)) < 0.5
    wrapper = pgd(network, maps)
    together = wrapper.generate(same, labels)
    each = np.concatenate([pgd(network, maps[i : i + 1]).generate(same[:1], labels[:1]) for i in range(6)])
    np.testing.assert_allclose(together, each, atol=1e-6)


# --- classifiers ----------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A network that undoes what stands before it, so that it classifies the tests' images."""

    def __init__(self, network, undo):
        super().__init__()
        self.network, self.undo = network, undo

    def forward(self, z):
        return self.network(self.undo(z))


MEAN, STD = np.float32([0.3, 0.4, 0.5])[:, None, None], np.float32([0.2, 0.25, 0.3])[:, None, None]
SETTINGS = {
    "preprocessing": (
        lambda n: Plain(n, lambda z: z * torch.from_numpy(STD) + torch.from_numpy(MEAN)),
        {"preprocessing": (MEAN, STD)},
        lambda x: x,
    ),
    "255": (lambda n: Plain(n, lambda z: z / 255), {"clip_values": (0.0, 255.0)}, lambda x: x * 255),
    "symmetric": (lambda n: Plain(n, lambda z: (z + 1) / 2), {"clip_values": (-1.0, 1.0)}, lambda x: x * 2 - 1),
    "no range": (lambda n: n, {"clip_values": None}, lambda x: x),
    "channels last": (
        lambda n: Plain(n, lambda z: z.permute(0, 3, 1, 2)),
        {"channels_first": False, "input_shape": (16, 16, 3)},
        lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)),
    ),
    "smoothing": (lambda n: n, {"preprocessing_defences": SpatialSmoothing(window_size=2)}, lambda x: x),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["ProjectedGradientDescent", "DeepFool", "HopSkipJump", "CarliniL2Method"])
def test_any_classifier_works_in_its_own_space(setting, name, network, x, y, salience):
    around, options, moved = SETTINGS[setting]
    estimator = classifier(around(network), **options)
    scale = float(np.ptp(moved(x)) / np.ptp(x))
    arguments = {
        "ProjectedGradientDescent": {"eps": 0.1 * scale, "eps_step": 0.03 * scale, "max_iter": 4},
        "DeepFool": {"max_iter": 3},
        "HopSkipJump": {"max_iter": 1, "max_eval": 20, "init_eval": 10, "init_size": 30},
        "CarliniL2Method": {"max_iter": 3, "binary_search_steps": 2, "initial_const": 1e4, "learning_rate": 0.1},
    }[name]
    attack = getattr(evasion, name)(estimator, **arguments, **QUIET)
    given = moved(x)
    salient = moved(salience.numpy().astype(np.float32)) > (0.5 if setting != "255" else 0)
    if setting == "symmetric":
        salient = salience.numpy()
    seen = []

    def mask_fn(images, labels):
        seen.append((images, labels))
        return salience

    before = given.copy()
    np.random.seed(0)
    adversarial = SIPWrapper(attack, mask_fn).generate(given, y)
    assert np.array_equal(given, before)
    assert np.array_equal(adversarial[salient], given[salient])
    assert (adversarial != given).any()
    ((images, labels),) = seen
    torch.testing.assert_close(images, torch.from_numpy(x), atol=1e-6, rtol=0)
    assert labels.tolist() == y.argmax(1).tolist()
    if estimator.clip_values is not None:
        assert adversarial.min() >= estimator.clip_values[0]
        assert adversarial.max() <= estimator.clip_values[1]
    array = SIPWrapper(attack, salient).generate(given, y)  # a map in the layout of x
    assert np.array_equal(array[salient], given[salient])


def test_a_flat_map_is_of_height_and_width_in_either_layout(network, x, y):
    around, options, moved = SETTINGS["channels last"]
    flat = np.zeros((16, 16), dtype=bool)
    flat[:5] = True
    attack = evasion.ProjectedGradientDescent(classifier(around(network), **options), **LINF)
    adversarial = SIPWrapper(attack, flat).generate(moved(x), y)
    changed = (adversarial != moved(x)).any((0, 3))
    assert not changed[:5].any()
    assert changed[5:].any()


def test_maps_of_a_teacher_go_with_a_classifier_of_bytes(network, x, y):
    around, options, moved = SETTINGS["255"]
    attack = evasion.FastGradientMethod(classifier(around(network), **options), eps=20.0)
    teacher = GradientSalience(network)
    expected = teacher(torch.from_numpy(x), torch.from_numpy(y).argmax(1)).numpy()
    adversarial = SIPWrapper(attack, teacher).generate(moved(x), y)
    agree = (adversarial == moved(x)) >= expected  # scaling there and back rounds, so that a tie may fall the other way
    assert agree.mean() > 0.999


@pytest.mark.parametrize("form", ["one-hot", "indices", "column", "list", "none"])
def test_labels_in_any_of_arts_forms(form, network, x, y, salient):
    forms = {
        "one-hot": y,
        "indices": y.argmax(1),
        "column": y.argmax(1)[:, None],
        "list": y.argmax(1).tolist(),
        "none": None,
    }
    seen = []

    def mask_fn(images, labels):
        seen.append(labels)
        return torch.from_numpy(salient)

    attack = evasion.ProjectedGradientDescent(classifier(network), **LINF)
    adversarial = SIPWrapper(attack, mask_fn).generate(x, forms[form])
    expected = SIPWrapper(attack, salient).generate(x, y)
    assert np.array_equal(adversarial, expected)  # the images are classified correctly, so `None` means the same labels
    assert seen[0] is None if form == "none" else seen[0].tolist() == y.argmax(1).tolist()


def test_autoattacks_labels_are_no_targets(network, x, y, labels, salient):
    seen = []
    members = [evasion.FastGradientMethod(classifier(network), eps=0.1)]
    attack = evasion.AutoAttack(classifier(network), eps=0.1, attacks=members, targeted=True)
    SIPWrapper(attack, lambda images, labels: (seen.append(labels), torch.from_numpy(salient))[1]).generate(x, y)
    assert seen[0].tolist() == labels.tolist()


def test_targets_are_not_handed_to_mask_fn_as_labels(network, x, labels, salient):
    seen = []

    def mask_fn(images, labels):
        seen.append(labels)
        return torch.from_numpy(salient)

    targets = one_hot((labels + 1) % 10)
    attack = evasion.ProjectedGradientDescent(
        classifier(network), targeted=True, **{**LINF, "eps": 0.3, "max_iter": 10}
    )
    adversarial = SIPWrapper(attack, mask_fn).generate(x, targets)
    assert seen == [None]
    loss = nn.functional.cross_entropy
    target = (labels + 1) % 10
    with torch.no_grad():
        before, after = (loss(network(torch.from_numpy(z)), target) for z in (x, adversarial))
    assert after < before - 1


def test_integer_images_are_attacked_as_the_bare_attack_does(network, x, y, salient):
    around, options, _ = SETTINGS["255"]
    given = (x * 255).astype(np.uint8)
    attack = evasion.ProjectedGradientDescent(
        classifier(around(network), **options), **{**LINF, "eps": 20.0, "eps_step": 5.0}
    )
    assert np.array_equal(SIPWrapper(attack, np.zeros((16, 16))).generate(given, y), attack.generate(given, y))
    adversarial = SIPWrapper(attack, salient).generate(given, y)
    assert np.array_equal(adversarial[salient], given[salient])


# --- ART's own mask -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ProjectedGradientDescent", "DeepFool", "AutoProjectedGradientDescent", "HopSkipJump"]
)
@pytest.mark.parametrize("form", ["bool", "float", "row of the batch", "each image"])
def test_arts_mask_is_intersected_with_the_map_for_any_attack(name, form, network, x, y, salient):
    allowed = np.zeros((16, 16), dtype=bool)
    allowed[:, 4:12] = True
    masks = {
        "bool": allowed,
        "float": allowed.astype(np.float64),
        "row of the batch": allowed[None, None].astype(np.float32),
        "each image": np.broadcast_to(allowed, x.shape).copy(),
    }
    row = next(row for row in art_rows.TABLE if row.name == name)
    attack = row.build(network)
    adversarial = SIPWrapper(attack, salient).generate(x, y, mask=masks[form])
    untouched = salient | ~np.broadcast_to(allowed, x.shape)
    assert np.array_equal(adversarial[untouched], x[untouched])
    assert (adversarial != x).any()


def test_a_mask_that_is_given_to_carlini_l0_is_kept(network, x, y, salient):
    allowed = np.zeros_like(x)
    allowed[:, :, :8] = 1
    options = {"max_iter": 4, "binary_search_steps": 2, "learning_rate": 0.3, "initial_const": 10.0, **QUIET}
    attack = evasion.CarliniL0Method(classifier(network), mask=allowed, **options)
    adversarial = SIPWrapper(attack, salient).generate(x, y)
    untouched = salient | (allowed == 0)
    assert np.array_equal(adversarial[untouched], x[untouched])
    assert (adversarial != x).any()
    assert attack.mask is allowed


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.ones((3, 3)), "broadcast"),  # NumPy's own
        (np.full((16, 16), 0.5), "0 and 1"),
        (np.full((16, 16), np.nan), "0 and 1"),
        (torch.ones(16, 16), "salience="),
    ],
)
def test_a_bad_mask_is_a_clear_error(mask, says, network, x, y, salient):
    with pytest.raises(ValueError, match=says):
        pgd(network, salient).generate(x, y, mask=mask)


def test_a_call_may_bring_its_own_map(network, x, y, salient):
    wrapper = pgd(network)
    adversarial = wrapper.generate(x, y, salience=salient)
    assert np.array_equal(adversarial, pgd(network, salient).generate(x, y))
    with pytest.raises(ValueError, match=r"No salience map.*salience=\.\.\."):
        wrapper.generate(x, y)


# --- universal perturbations, composites ----------------------------------------------------------------------------------


@pytest.mark.parametrize("targeted", [False, True])
def test_one_perturbation_for_all_images_needs_one_map(targeted, network, x, y, salient):
    kind = evasion.TargetedUniversalPerturbation if targeted else evasion.UniversalPerturbation
    attack = kind(
        classifier(network), attacker="fgsm", attacker_params={"eps": 0.5, "targeted": targeted}, max_iter=3, eps=0.5
    )
    with pytest.raises(ValueError, match="one perturbation of all images"):
        SIPWrapper(attack, salient).generate(x, np.roll(y, 1, 1) if targeted else y)
    shared = salient[:1]
    adversarial = SIPWrapper(attack, shared).generate(x, np.roll(y, 1, 1) if targeted else y)
    assert (adversarial != x).any()
    assert not attack.noise[shared].any()
    assert np.array_equal(adversarial, np.clip(x + attack.noise, 0, 1))
    assert "_get_attack" not in vars(attack)


def test_a_wrapped_attack_may_be_a_member_of_autoattack(network, x, y, salient):
    estimator = classifier(network)
    first = SIPWrapper(evasion.ProjectedGradientDescent(estimator, **LINF), np.arange(16)[:, None] * np.ones(16) < 4)
    attack = evasion.AutoAttack(estimator, eps=0.1, attacks=[first, evasion.DeepFool(estimator, max_iter=3, **QUIET)])
    wrapper = SIPWrapper(attack, salient)
    adversarial = wrapper.generate(x, y)
    assert np.array_equal(adversarial[salient], x[salient])
    found_first = attack.best_attacks == 0
    assert found_first.any()
    assert (adversarial[found_first][:, :, :4] == x[found_first][:, :, :4]).all()
    assert attack.attacks[0] is first
    alone = evasion.AutoAttack(estimator, eps=0.1, attacks=[first]).generate(x, y)  # bare, of a wrapped one
    assert (alone[:, :, :4] == x[:, :, :4]).all()


def test_members_travel_to_the_processes_of_a_parallel_autoattack(network, x, y, salient):
    from sip_plugin.adapters.art import attack_batch
    from sip_plugin.adapters.composite import MemberProxy
    from sip_plugin.adapters.projection import RowSelections, watched_array

    attack = evasion.DeepFool(classifier(network), max_iter=3, **QUIET)
    selections = RowSelections(torch.from_numpy(x))
    member = MemberProxy(attack, attack_batch, torch.from_numpy(salient), selections, method="generate")
    sent = copy.deepcopy(watched_array(x, selections)), copy.deepcopy(member)
    images, travelled = pickle.loads(pickle.dumps(sent))
    adversarial = travelled.generate(x=images[2:5], y=y[2:5])
    _ = watched_array(x, selections)[2:5]
    assert np.array_equal(adversarial, member.generate(x=x[2:5], y=y[2:5]))
    assert np.array_equal(adversarial[salient[2:5]], x[2:5][salient[2:5]])


# --- attacks of the user's own --------------------------------------------------------------------------------------------


class OwnAttack(EvasionAttack):
    """One signed step, by an estimator under a name of its own."""

    attack_params = [*EvasionAttack.attack_params, "eps"]  # noqa: RUF012 (as ART has it)
    _estimator_requirements = ()

    def __init__(self, estimator, eps=0.1):
        super().__init__(estimator=estimator)
        self.surrogate = estimator
        self.eps = eps

    def generate(self, x, y=None, **kwargs):
        x += self.eps * np.sign(self.surrogate.loss_gradient(x, y))
        return np.clip(x, 0, 1)


class Indirect(OwnAttack):
    def __init__(self, inner):
        super().__init__(inner.estimator)
        self.inner = inner

    def generate(self, x, y=None, **kwargs):
        return self.inner.generate(x, y)


class Random(OwnAttack):
    def generate(self, x, y=None, **kwargs):
        return np.clip(x + self.eps, 0, 1)


def test_an_attack_of_ones_own_is_projected_at_its_queries(network, x, y, salient):
    attack = OwnAttack(classifier(network))
    before = x.copy()
    adversarial = SIPWrapper(attack, salient).generate(x, y)
    assert np.array_equal(x, before)
    assert np.array_equal(adversarial[salient], x[salient])
    assert (adversarial != x).any()
    assert isinstance(SIPWrapper(Indirect(OwnAttack(classifier(network))), salient), EvasionAttack)
    with pytest.raises(TypeError, match="Wrap that attack instead"):
        SIPWrapper(Indirect(evasion.HopSkipJump(classifier(network))), salient)


def test_attacks_within_it_are_projected_to_any_depth(network, x, y, salient):
    class Several(OwnAttack):
        def __init__(self, inner):
            super().__init__(inner[0].estimator)
            self.inner = inner

        def generate(self, x, y=None, **kwargs):
            self.estimator.predict(x)
            for inner in self.inner:
                x = inner.generate(x, y)
            return x

    seen = []
    network[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().numpy().copy()))
    inner = [evasion.ProjectedGradientDescent(classifier(network), **LINF), Indirect(OwnAttack(classifier(network)))]
    SIPWrapper(Several(inner), salient).generate(x, y)
    assert len(seen) > 3
    assert all(np.array_equal(queries[salient], x[salient]) for queries in seen)


def test_an_attack_of_ones_own_that_asks_nothing_is_not_masked_late_in_silence(network, x, y, salient):
    with pytest.warns(RuntimeWarning, match="without one query"):
        SIPWrapper(Random(classifier(network)), salient).generate(x, y)


def test_a_derived_attack_is_projected_as_its_parent(network):
    class Mine(evasion.HopSkipJump):
        pass

    assert ART.spec_for(Mine(classifier(network))) is ART.specs["HopSkipJump"]


# --- arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y: (x[0], y), r"images \(N, C, H, W\)"),
        (lambda x, y: (x * 2, y), "clip_values"),
        (lambda x, y: (np.where(x > 0.5, np.nan, x), y), "finite"),
        (lambda x, y: (x, y[:3]), "one row for each of the 6"),
    ],
)
def test_bad_images_and_labels_are_a_clear_error_and_leave_the_attack_usable(change, says, network, x, y, salient):
    wrapper = pgd(network, salient)
    with pytest.raises(ValueError, match=says):
        wrapper.generate(*change(x, y))
    assert (wrapper.generate(x, y) != x).any()


def test_rows_of_starting_points_go_with_their_images_and_are_not_written_into(network, x, y, salient):
    attack = evasion.HopSkipJump(classifier(network), max_iter=1, max_eval=10, init_eval=10, **QUIET)
    starts = 1 - x
    before = starts.copy()
    adversarial = SIPWrapper(attack, salient).generate(x, y, x_adv_init=starts)
    assert np.array_equal(starts, before)
    assert np.array_equal(adversarial[salient], x[salient])
    again = SIPWrapper(attack, salient).generate(x, y, x_adv_init=adversarial, resume=True)
    assert attack.curr_iter == 2  # each image went on from the first call's end
    # It minimises L2, and may end a step farther away; another image's start would be much farther.
    first, second = (np.sqrt(np.square(z - x).sum((1, 2, 3))) for z in (adversarial, again))
    assert (second <= 1.5 * first).all()


# --- ART's trainers -------------------------------------------------------------------------------------------------------


def trainable(network):
    """A classifier that can be trained; a module and no nn.Sequential, which ART's TRADES trainer does not take."""
    model = Plain(network, lambda z: z)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    return classifier(model, optimizer=optimizer)


@pytest.mark.parametrize("kind", ["plain", "TRADES", "AWP"])
def test_arts_trainers_train_with_it(kind, network, digits):
    x, y = digits[0][:96].numpy(), one_hot(digits[1][:96])
    estimator = trainable(network)
    maps = []

    def mask_fn(images, labels):
        maps.append(len(images))
        return images > 0.5

    attack = SIPWrapper(evasion.ProjectedGradientDescent(estimator, **LINF), mask_fn)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    if kind == "plain":
        trainer = AdversarialTrainer(estimator, attacks=attack, ratio=1.0)
    elif kind == "TRADES":
        trainer = AdversarialTrainerTRADESPyTorch(estimator, attack, beta=6.0)
    else:
        proxy = trainable(copy.deepcopy(network))
        trainer = AdversarialTrainerAWPPyTorch(estimator, proxy, attack, mode="PGD", gamma=0.01, beta=6.0, warmup=0)
    np.random.seed(0)
    torch.manual_seed(0)
    trainer.fit(x, y, batch_size=32, nb_epochs=1)
    assert maps == [32, 32, 32]
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert (estimator.predict(x).argmax(1) == y.argmax(1)).mean() > 0.5


def test_a_map_of_zeros_changes_nothing_for_images_in_any_layout(network, x, y):
    transposed = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for given in (transposed, x[::-1], np.asfortranarray(x)):
        attack = evasion.FastGradientMethod(classifier(network), norm=2, eps=1.0)
        bare = attack.generate(given, y)
        assert np.array_equal(SIPWrapper(attack, np.zeros((16, 16))).generate(given, y), bare)


def test_rounding_in_a_coarse_dtype_is_not_taken_for_leaving_the_ball(network, x, y, salient):
    attack = evasion.SquareAttack(classifier(network), eps=0.3, max_iter=5, **QUIET)
    coarse = x.astype(np.float16)
    for mask in (salient, np.zeros((16, 16))):
        adversarial = SIPWrapper(attack, mask).generate(coarse, y)
        assert np.abs(adversarial.astype(np.float32) - coarse).max() <= 0.301


class Backwards(evasion.SquareAttack):
    def generate(self, x, y=None, **kwargs):
        return super().generate(x[::-1], y[::-1], **kwargs)[::-1]


def test_an_attack_that_turns_its_batch_round_works(network, x, y):
    attack = Backwards(classifier(network), eps=0.2, max_iter=5, **QUIET)
    assert SIPWrapper(attack, np.zeros((16, 16))).generate(x, y).shape == x.shape


@pytest.mark.parametrize("classes", [2, 10])
def test_targets_of_any_width_that_the_bare_attack_takes_are_taken(classes, network, x, salient):
    targets = np.eye(classes, dtype=np.float32)[[1] * len(x)]
    bare = evasion.SaliencyMapMethod(classifier(network), theta=0.5, gamma=0.05, batch_size=len(x), verbose=False)
    expected = bare.generate(x, targets)
    assert np.array_equal(SIPWrapper(bare, np.zeros_like(salient)).generate(x, targets), expected)
    adversarial = SIPWrapper(bare, salient).generate(x, targets)
    assert np.array_equal(adversarial[salient], x[salient])
