"""Each row of a query is projected with its own image's map, whichever part of the batch an attack asks about.

The tests know the truth without the code under test: an image's number is written into pixels that no map protects and the
network does not look at, so that it travels with whatever the attack makes of the image; or, for identical images, it is the
image's label, which travels with the image into the attack's own methods.
"""

import functools
import math

import art.attacks.evasion as evasion
import foolbox
import numpy as np
import pyautoattack
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.strength.functions import built
from sip_plugin import SIPWrapper
from sip_plugin.adapters.projection import RowSelections, UnknownRowsError
from tests.adapters.art_rows import build_autoattack, classifier, one_hot
from tests.adapters.table import distance
from tests.conftest import small_network

SIZE, PICTURE = 28, 20  # the digit is in the first 20 lines, its number in the last 8


def which_bit(norm):
    """Which bit of the number each pixel of the last lines holds, 7 for none: few in a ball that turns no pixel."""
    bits = torch.arange((SIZE - PICTURE) * SIZE).reshape(SIZE - PICTURE, SIZE) % 7
    if norm == "Linf":
        bits.view(-1)[7:] = 7
    return bits


@functools.cache
def digits():
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return F.interpolate(x, size=(PICTURE, SIZE), mode="bilinear"), torch.tensor(labels)


@functools.cache
def batch(count, norm="Linf"):
    """Digits, among them repeated, flipped and nearly equal ones, each with its number and another map; their labels."""
    x, y = (part[:count].clone() for part in digits())
    for k in range(1, count):
        original = k - k % 7
        if k % 7 == 1:
            x[k], y[k] = x[original], y[original]
        elif k % 7 == 3:
            x[k] = x[original].flip(-1)
        elif k % 7 == 4:
            x[k], y[k] = (x[original] + 1e-3).clamp(max=1), y[original]
    number = torch.arange(count).view(-1, 1, 1) >> which_bit(norm) & 1
    images = torch.cat([x, number[:, None].float()], dim=2)
    salience = torch.rand(images.shape, generator=torch.Generator().manual_seed(count)) < 0.5
    salience[:, :, PICTURE:] = False
    salience[count // 2] = False
    return images, y, salience


class Marked(nn.Module):
    """A linear network for digits that reads each image's number and compares its salient elements with the clean ones."""

    def __init__(self, images, salience, norm="Linf"):
        super().__init__()
        self.bits = which_bit(norm)
        self.linear = nn.Linear(PICTURE * SIZE, 10)
        self.images, self.salience = images, salience
        self.wrong = self.queries = self.parts = 0

    def forward(self, x):
        if len(self.images) > 1:
            pixels = x.detach()[:, 0, PICTURE:]
            means = torch.stack([pixels[:, self.bits == bit].nanmean(1) for bit in range(7)], 1)
            number = ((means > 0.5).long() << torch.arange(7)).sum(1).clamp(max=len(self.images) - 1)
            changed = self.salience[number] & (x.detach() != self.images[number].to(x))
            # ART's Square gives an image of NaN where it divides by 0.
            self.wrong += int((changed.flatten(1).any(1) & ~means.isnan().any(1)).sum())
            self.queries += len(x)
            self.parts += len(x) != len(self.images)
        return self.linear(x[:, :, :PICTURE].flatten(1).to(self.linear.weight))


@functools.cache
def weights():
    """Of the linear network, trained with noise so that attacks at 0.3 take a while and fool some images only."""
    x, y = digits()
    model = Marked(x[:1], x[:1] > 2)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(8):
        for rows in torch.randperm(1500).split(100):
            optimizer.zero_grad()
            noisy = (x[rows] + 0.3 * torch.randn_like(x[rows])).clamp(0, 1)
            F.cross_entropy(model(F.pad(noisy, (0, 0, 0, SIZE - PICTURE))), y[rows]).backward()
            optimizer.step()
    return model.state_dict()


def autoattack(network, norm, eps):
    attack = pyautoattack.AutoAttack(network, norm=norm, eps=eps, seed=0)
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = 3
    attack.apgd.n_restarts = 2
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 2
    attack.square.n_queries = 20
    return attack


def of_torch(name, **arguments):
    return lambda network, norm, eps: getattr(torchattacks, name)(network, norm=norm, eps=eps, **arguments)


def of_art(name, **arguments):
    def build(network, norm, eps):
        estimator = classifier(network, input_shape=(1, SIZE, SIZE))
        ball = {} if eps is None else {"eps": eps, "norm": np.inf if norm == "Linf" else 2}
        return getattr(evasion, name)(estimator, **ball, **arguments)

    return build


def multi(network, norm, eps):
    pgd = (
        torchattacks.PGD(network, eps=eps, steps=3) if norm == "Linf" else torchattacks.PGDL2(network, eps=eps, steps=3)
    )
    square = torchattacks.Square(network, norm=norm, eps=eps, n_queries=20)
    return torchattacks.MultiAttack([pgd, square, torchattacks.FAB(network, norm=norm, eps=eps, steps=3)])


def torch_autoattack(network, norm, eps):
    attack = torchattacks.AutoAttack(network, norm=norm, eps=eps, seed=0)
    for member in attack._autoattack.attacks:
        member.n_queries, member.steps, member.n_target_classes = 20, 3, 2
    return attack


def art_autoattack(network, norm, eps):
    estimator = classifier(network, input_shape=(1, SIZE, SIZE))
    attack = build_autoattack(estimator, {"eps": eps, "norm": np.inf if norm == "Linf" else 2})
    for member in attack.attacks:
        if hasattr(member, "eps"):
            member.set_params(eps=eps, norm=attack.norm)
    return attack


def of_adv_lib(name, **arguments):
    return lambda network, norm, eps: built(
        "adv_lib", name, network, {key: eps if value == "eps" else value for key, value in arguments.items()}
    )


ADV_LIB = {  # those that ask about parts or copies of their batch
    "apgd": {"norm": math.inf, "eps": "eps", "n_iter": 4, "n_restarts": 2},
    "df": {"steps": 4},
    "fga": {"targeted": False, "max_iter": 8, "n_samples": 2},
    "vfga": {"targeted": False, "max_iter": 8, "n_samples": 2},
    "pgd_linf": {"ε": "eps", "steps": 3, "restarts": 2},
}
QUIET = {"verbose": False}
CARLINI = {
    "max_iter": 4,
    "binary_search_steps": 2,
    "learning_rate": 0.3,
    "initial_const": 10.0,
    "batch_size": 4,
    **QUIET,
}
STEPS = {"max_iter": 4, "batch_size": 3, **QUIET}
BALL = {  # what keeps to a ball in either norm
    "torchattacks APGD": of_torch("APGD", steps=5, n_restarts=3),
    "torchattacks APGDT": of_torch("APGDT", steps=3, n_restarts=2, n_classes=4),
    "torchattacks FAB": of_torch("FAB", steps=4, n_restarts=2),
    "torchattacks FAB targeted": of_torch("FAB", steps=4, multi_targeted=True, n_classes=4),
    "torchattacks Square": of_torch("Square", n_queries=40),
    "torchattacks AutoAttack": torch_autoattack,
    "torchattacks MultiAttack": multi,
    "pyautoattack AutoAttack": autoattack,
    "ART SquareAttack": of_art("SquareAttack", max_iter=20, nb_restarts=2, batch_size=3, **QUIET),
    "ART AutoProjectedGradientDescent": of_art("AutoProjectedGradientDescent", eps_step=0.1, nb_random_init=2, **STEPS),
    "ART AutoConjugateGradient": of_art("AutoConjugateGradient", eps_step=0.1, nb_random_init=2, **STEPS),
    "ART RescalingAutoConjugateGradient": of_art("RescalingAutoConjugateGradient", eps_step=0.1, **STEPS),
    "ART ProjectedGradientDescent": of_art("ProjectedGradientDescent", eps_step=0.1, num_random_init=2, **STEPS),
    "ART AutoAttack": art_autoattack,
}
OTHER = {  # without a ball in both norms; those that take no eps leave it alone
    "torchattacks SPSA": lambda network, norm, eps: torchattacks.SPSA(
        network, eps, nb_iter=2, nb_sample=5, max_batch_size=3
    ),
    "torchattacks EOTPGD": lambda network, norm, eps: torchattacks.EOTPGD(network, eps, steps=2),
    "torchattacks DeepFool": lambda network, norm, eps: torchattacks.DeepFool(network, steps=4),
    "torchattacks CW": lambda network, norm, eps: torchattacks.CW(network, c=5, steps=5),
    "ART CarliniL2Method": lambda network, norm, eps: of_art("CarliniL2Method", **CARLINI)(network, norm, None),
    "ART CarliniL0Method": lambda network, norm, eps: of_art("CarliniL0Method", **CARLINI)(network, norm, None),
    "ART ElasticNet": lambda network, norm, eps: of_art("ElasticNet", **CARLINI)(network, norm, None),
    "ART DeepFool": lambda network, norm, eps: of_art("DeepFool", nb_grads=3, **STEPS)(network, norm, None),
    "ART NewtonFool": lambda network, norm, eps: of_art("NewtonFool", **STEPS)(network, norm, None),
    "ART SaliencyMapMethod": lambda network, norm, eps: of_art(
        "SaliencyMapMethod", theta=0.3, gamma=0.01, batch_size=3, **QUIET
    )(network, norm, None),
    **{f"adv_lib {name}": of_adv_lib(name, **arguments) for name, arguments in ADV_LIB.items()},
    "Foolbox LinfPGD": lambda network, norm, eps: foolbox.attacks.LinfPGD(steps=3),
    "Foolbox L2CarliniWagnerAttack": lambda network, norm, eps: foolbox.attacks.L2CarliniWagnerAttack(3, steps=5),
    "Foolbox GenAttack": lambda network, norm, eps: foolbox.attacks.GenAttack(steps=3, population=4),
}


def adversarial(library, attack, network, x, y, salience, eps, **options):
    torch.manual_seed(0)
    np.random.seed(0)
    if library in ("torchattacks", "adv_lib"):
        return SIPWrapper(attack, salience, **options)(x, y)
    if library == "pyautoattack":
        return SIPWrapper(attack, salience, **options).run_standard_evaluation(x, y)[0]
    if library == "ART":
        targets = one_hot((y + 1) % 10 if isinstance(attack, evasion.SaliencyMapMethod) else y)
        return torch.from_numpy(SIPWrapper(attack, salience, **options).generate(x.numpy(), targets))
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    criterion = foolbox.criteria.TargetedMisclassification((y + 1) % 10) if "Gen" in type(attack).__name__ else y
    return SIPWrapper(attack, salience, **options)(model, x, criterion, epsilons=eps)[1]


BALLS = [("Linf", 0.03), ("Linf", 0.3), ("L2", 0.5), ("L2", 5.0)]
CASES = [(name, BALL[name], *ball) for name in BALL for ball in BALLS]
CASES += [(name, OTHER[name], *ball) for name in OTHER for ball in BALLS[:2]]
SLOW = (
    "adv_lib",
    "SPSA",
    "DeepFool",
    "CW",
    "Carlini",
    "ElasticNet",
    "SaliencyMap",
    "NewtonFool",
    "Gen",
)  # or image by image


@pytest.mark.parametrize(("name", "build", "norm", "eps"), CASES, ids=[f"{c[0]}-{c[2]}-{c[3]}" for c in CASES])
def test_each_row_is_projected_with_its_own_images_map(name, build, norm, eps):
    for count in (2, 7) if any(slow in name for slow in SLOW) else (2, 7, 100):
        x, y, salience = batch(count, norm)
        network = Marked(x, salience, norm)
        network.load_state_dict(weights())
        attack = build(network.eval(), norm, eps)
        network.wrong = network.queries = 0
        result = adversarial(name.split()[0], attack, network, x, y, salience, eps)
        assert network.queries >= count
        assert network.wrong == 0
        assert torch.equal(result[salience], x[salience])
        if name in BALL:
            assert (distance(norm, result - x) <= eps * (1 + 1e-5) + 1e-6).all()
    if name in BALL and eps in (0.3, 5.0) and count == 100:
        assert network.parts  # or the test would not show anything


# --- identical images with different maps -----------------------------------------------------------------------------


class Told(nn.Module):
    """A network that is told which images it sees, and is fooled by one after the other as its queries go by."""

    def __init__(self, images, salience):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(images[0].numel(), len(images), generator=torch.Generator().manual_seed(0))
        )
        self.images, self.salience = images, salience
        self.told = {len(images): torch.arange(len(images))}
        self.wrong = self.calls = self.parts = 0

    def forward(self, x):
        ids = self.told[len(x)]
        self.wrong += int((self.salience[ids] & (x.detach() != self.images[ids])).sum())
        self.calls += 1
        self.parts += len(x) < len(self.images)
        fooled = self.calls > 2 + (ids * 5) % 17
        return 0.01 * x.flatten(1) @ self.weight + torch.where(fooled, -9, 9)[:, None] * F.one_hot(
            ids, len(self.images)
        )


METHODS = ["attack_single_run", "attack_single_run_targeted", "margin_and_loss"]
METHODS += ["get_diff_logits_grads_batch", "get_diff_logits_grads_batch_targeted"]


def tell(network, attack):
    """Have an attack's own methods tell the network which images they are handed, by their labels."""

    def telling(method, x, y, *args, **kwargs):
        network.told[len(y)] = y.clone()
        return method(x, y, *args, **kwargs)

    for name in METHODS:
        if hasattr(attack, name):
            vars(attack)[name] = functools.partial(telling, getattr(attack, name))


@pytest.mark.parametrize("library", ["torchattacks", "pyautoattack"])
@pytest.mark.parametrize("kind", ["apgd", "fab", "square"])
@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_identical_images_with_different_maps_are_told_apart(library, kind, norm, eps):
    x = torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(0)).repeat(9, 1, 1, 1)
    y = torch.arange(9)
    salience = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    network = Told(x, salience).eval()
    if library == "torchattacks":
        arguments = {"square": {"n_queries": 15}}.get(kind, {"steps": 4, "n_restarts": 3})
        attack = {"apgd": torchattacks.APGD, "fab": torchattacks.FAB, "square": torchattacks.Square}[kind](
            network, norm=norm, eps=eps, **arguments
        )
        tell(network, attack)
    else:
        attack = pyautoattack.AutoAttack(network, norm=norm, eps=eps, seed=0, version="custom", device="cpu")
        attack.attacks_to_run = [{"apgd": "apgd-ce"}.get(kind, kind)]
        attack.apgd.n_iter, attack.apgd.n_restarts, attack.fab.n_iter, attack.fab.n_restarts = 4, 3, 4, 2
        attack.square.n_queries = 15
        for member in (attack.apgd, attack.fab, attack.square):
            tell(network, member)
        network.calls = -10  # those of the package's own checks
    result = adversarial(library, attack, network, x, y, salience, eps)
    assert network.wrong == 0
    assert network.parts
    assert torch.equal(result[salience], x[salience])


@pytest.mark.parametrize("name", ["HopSkipJump", "BoundaryAttack", "SignOPTAttack"])
def test_attacks_that_start_far_from_the_image_are_handed_one_image_after_the_other(name):
    x, y, salience = batch(7)
    salience[3] = salience[2]  # the only image without a map
    network = Marked(x[:1], salience[:1])
    network.load_state_dict(weights())
    seen = []  # the images that all rows of a query may belong to

    def see(_, arguments):
        rows = arguments[0].detach()
        fits = [bool((~salience[j] | (rows == x[j])).all()) for j in range(len(x))]
        seen.append([j for j, fit in enumerate(fits) if fit])

    arguments = {
        "HopSkipJump": {"max_iter": 2, "max_eval": 30, "init_eval": 10, "init_size": 20},
        "BoundaryAttack": {"targeted": False, "max_iter": 3, "sample_size": 4, "init_size": 20},
        "SignOPTAttack": {"targeted": False, "max_iter": 1, "k": 4, "num_trial": 10, "query_limit": 100},
    }[name]
    attack = of_art(name, **arguments, **QUIET)(network.eval(), None, None)
    network.register_forward_pre_hook(see)
    result = adversarial("ART", attack, network, x, y, salience, None)
    assert torch.equal(result[salience], x[salience])
    order = [0]
    for images in seen:  # a clean image may be either of two that are equal
        order.append(min(image for image in images if image >= order[-1]))
    assert set(order) == set(range(7))


# --- what cannot be known ---------------------------------------------------------------------------------------------


class Halves:
    """An attack of one's own that asks about halves of its batch, in an order that nobody can know."""

    def __init__(self, model):
        self.model = model

    def __call__(self, images, labels):
        result = images.clone()
        for rows in torch.arange(len(images)).flip(0).chunk(2):
            self.model(images[rows] + 0.1)
            result[rows] = (images[rows] + 0.1).clamp(0, 1)
        return result


def test_an_unknown_attack_that_asks_about_part_of_its_batch_runs_one_image_at_a_time():
    x, y, salience = batch(7)
    network = Marked(x, salience)
    wrapper = SIPWrapper(Halves(network), salience)
    with pytest.warns(RuntimeWarning, match="one_by_one=True"):
        result = wrapper(x, y)
    network.images, network.salience = x, salience
    assert torch.equal(result, torch.where(salience, x, (x + 0.1).clamp(0, 1)))
    assert "one_by_one=True" in repr(wrapper)
    assert network.wrong == 0
    assert torch.equal(wrapper(x, y, mask=torch.zeros(SIZE, SIZE)), Halves(network)(x, y))


class Pieces(torchattacks.Square):
    """Asks in pieces that were all cut before the first of them is asked about."""

    def get_logits(self, inputs, *args, **kwargs):
        pieces = [inputs[k : k + 3] for k in range(0, len(inputs), 3)]
        return torch.cat([super(Pieces, self).get_logits(piece, *args, **kwargs) for piece in pieces])


class ArtPieces(evasion.SquareAttack):
    def _get_logits_diff(self, x, y):
        halves = np.array_split(np.arange(len(x)), 2)
        pieces = [(x[rows], y[rows]) for rows in halves if len(rows)]
        return np.concatenate([super(ArtPieces, self)._get_logits_diff(*piece) for piece in pieces])


class Spread(evasion.ProjectedGradientDescentNumpy):
    """Moves what ART's own mask holds back."""

    def _compute(self, x, *args, **kwargs):
        moved = super()._compute(x, *args, **kwargs)
        return np.clip(moved + np.random.uniform(-0.01, 0.01, moved.shape), 0, 1).astype(np.float32)


class FoolboxPieces(foolbox.attacks.LinfPGD):
    def value_and_grad(self, loss_fn, x):
        self.model(x[:3]), self.model(x[3:])
        return super().value_and_grad(loss_fn, x)

    def run(self, model, inputs, criterion, **kwargs):
        self.model = model
        return super().run(model, inputs, criterion, **kwargs)


def derived_autoattack(network):
    attack = autoattack(network, "Linf", 0.3)
    attack.attacks_to_run = ["square"]
    square = attack.square

    class SquareInPieces(type(square)):
        def margin_and_loss(self, x, y):
            pieces = [
                super(SquareInPieces, self).margin_and_loss(x[k : k + 3], y[k : k + 3]) for k in range(0, len(x), 3)
            ]
            return tuple(map(torch.cat, zip(*pieces, strict=True)))

    square.__class__ = SquareInPieces
    return attack


@pytest.mark.parametrize(
    ("library", "build"),
    [
        ("torchattacks", lambda net: Pieces(net, eps=0.3, n_queries=30)),
        ("ART", lambda net: of_art("SquareAttack", max_iter=10, **QUIET)(net, "Linf", 0.3)),
        (
            "ART",
            lambda net: Spread(
                classifier(net, input_shape=(1, SIZE, SIZE)), eps=0.3, eps_step=0.1, max_iter=3, batch_size=4, **QUIET
            ),
        ),
        ("Foolbox", lambda net: FoolboxPieces(steps=3)),
        ("pyautoattack", derived_autoattack),
    ],
    ids=["torchattacks", "ART", "ART's own mask", "Foolbox", "pyautoattack"],
)
def test_attacks_derived_from_known_ones_are_not_taken_for_them(library, build):
    x, y, salience = batch(7)
    network = Marked(x, salience)
    network.load_state_dict(weights())
    attack = build(network.eval())
    if type(attack) is evasion.SquareAttack:
        attack = ArtPieces(attack.estimator, eps=0.3, max_iter=10, **QUIET)
    network.wrong = network.queries = 0
    with pytest.warns(RuntimeWarning, match="one_by_one=True"):
        result = adversarial(library, attack, network, x, y, salience, 0.3)
    assert network.queries > 7
    assert network.wrong == 0
    assert torch.equal(result[salience], x[salience])


def test_a_map_of_zeros_keeps_the_batch_whole():
    x, y, _ = batch(7)
    network = Marked(x[:1], x[:1] > 2)
    seen = []
    network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    SIPWrapper(Halves(network), torch.zeros_like(x))(x, y)
    assert seen == [4, 3]


def test_selections_of_selections_are_followed_and_unknown_ones_refused():
    images = torch.zeros(6, 1, 2, 2)
    selections = RowSelections(images)
    for source, index in [
        (images, torch.tensor([5, 3, 0, 1])),
        (images[:4], slice(1, 3)),
        (torch.zeros(6, 10), torch.tensor([0, 1, 2])),  # logits
        (images, torch.zeros(6, 1, 2, 2, dtype=torch.bool)),
    ]:
        selections.record(source, index, source[index])
    assert selections.of(6).tolist() == list(range(6))
    assert selections.of(4).tolist() == [5, 3, 0, 1]
    assert selections.of(2).tolist() == [3, 0]
    for count in (3, 5, 12):
        with pytest.raises(UnknownRowsError):
            selections.of(count)
    selections.record(images, 4, images[4])
    assert selections.of(1).tolist() == [4]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_restarts_that_fool_some_images_more_are_no_trouble_for_autograd(norm):
    for seed in range(4):
        network = small_network(seed)
        x = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        salience = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        for kind in (torchattacks.APGD, torchattacks.APGDT):
            attack = kind(network, norm=norm, eps={"Linf": 0.02, "L2": 0.5}[norm], steps=5, n_restarts=3)
            adversarial = SIPWrapper(attack, salience)(x, network(x).argmax(1))
            assert torch.equal(adversarial[salience], x[salience])
            assert not adversarial.requires_grad
