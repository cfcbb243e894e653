"""The contract of a wrapped attack, one property after the other, over the attacks of every library."""

import copy
import dataclasses
import itertools
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from sip_plugin import SIPWrapper
from sip_plugin.model_state import HOOKS
from tests.adapters import art_rows, foolbox_rows, function_rows
from tests.adapters.loops import LOOPS
from tests.adapters.table import TABLE, distance
from tests.conftest import small_network

BIM, PGD = (next(row for row in TABLE if row.name == name) for name in ("BIM", "PGD"))
ATTACKS = [*TABLE, *art_rows.TABLE, *foolbox_rows.TABLE, *function_rows.TABLE]


def over(rows):
    """A test for each row. Brendel-Bethge is compiled once in a process: its tests share one."""
    numba = pytest.mark.xdist_group("numba")
    return pytest.mark.parametrize(
        "row", [pytest.param(row, marks=numba if "BrendelBethge" in str(row) else ()) for row in rows], ids=str
    )


every_attack = over(ATTACKS)


def of_the_row(request, batch):
    """As much of the shared images as a row is run on."""
    row = request.node.callspec.params.get("row") if hasattr(request.node, "callspec") else None
    return batch if row is None else batch[: row.images]


@pytest.fixture
def images(request, images):
    return of_the_row(request, images)


@pytest.fixture
def labels(request, labels):
    return of_the_row(request, labels)


@pytest.fixture
def salience(request, salience):
    row = request.node.callspec.params.get("row") if hasattr(request.node, "callspec") else None
    if row is not None and row.universal:
        return salience[:1].expand_as(salience)
    return of_the_row(request, salience)


class SeededRandomState(np.random.RandomState):
    """For attacks that draw their starting points from generators that they do not seed."""

    seeds = itertools.count()

    def __init__(self, seed=None):
        super().__init__(next(self.seeds) if seed is None else seed)


def run(row, attack, images, labels, seed=0, **options):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)  # as LGV does from this
    SeededRandomState.seeds = itertools.count(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "RandomState", SeededRandomState)
        return row.call(attack, images, labels, **options)


class Calls(list):
    """A record that copies of a network share."""

    def __deepcopy__(self, memo):
        return self


class Counter(nn.Module):
    """A network that counts the rows it is asked about, call by call."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.calls = Calls()

    def forward(self, x):
        self.calls.append(len(x))
        return self.network(x)


@every_attack
def test_salient_elements_equal_the_clean_image_bit_for_bit_and_others_change_within_the_ball(
    row, network, images, labels, salience
):
    wrapper = SIPWrapper(row.build(network), salience)
    adversarial = run(row, wrapper, images, labels)
    if isinstance(row, function_rows.FunctionRow):
        assert ("one_by_one=True" in repr(wrapper)) == row.alone
    assert torch.equal(adversarial[salience], images[salience])
    assert torch.equal(adversarial, images) != row.finds
    assert not adversarial.requires_grad
    # The attack's own ball and [0, 1] hold.
    if not row.bounded:
        adversarial = run(row, row.build(network), images, labels)
        assert adversarial.min() < 0 or adversarial.max() > 1, "mended upstream: take the flag away"
        return
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    if row.norm is not None:
        assert (distance(row.norm, adversarial - images) <= row.eps * (1 + 1e-5)).all()


@pytest.mark.parametrize("row", [row for row in TABLE if row.loop], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_step_is_projected_as_in_a_plain_loop_bit_for_bit(row, layout, network, images, labels, salience):
    if row.name == "PGDL2" and layout is torch.channels_last:
        with pytest.raises(RuntimeError, match="view"):  # torchattacks' own, on the bare attack
            row.build(network)(images.contiguous(memory_format=layout), labels)
        return
    images = images.contiguous(memory_format=layout)
    attack = row.build(network)
    torch.manual_seed(5)
    expected = LOOPS[row.name](attack, network, images, labels, salience).detach()
    adversarial = run(row, SIPWrapper(attack, salience), images, labels, seed=5)
    assert torch.equal(adversarial, expected)
    assert adversarial.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("row", [r for r in TABLE if r.loop and r.name != "FGSM"], ids=str)
def test_masking_only_the_final_result_is_not_the_plain_loop(row, network, images, labels, salience):
    attack = row.build(network)
    torch.manual_seed(5)
    expected = LOOPS[row.name](attack, network, images, labels, salience).detach()
    late = torch.where(salience, images, run(row, attack, images, labels, seed=5))
    assert not torch.equal(late, expected)


@every_attack
def test_every_query_that_the_network_sees_is_projected(row, network, images, labels, salience):
    """Late masking fails here for any attack that makes a query, whatever its final result looks like."""
    attack = dataclasses.replace(row, arguments={**row.arguments, **row.plain}).build(network)
    networks = [network]
    if row.name == "LGV":
        attack.collect_models()  # whose training batches are no queries
        networks = attack.list_models
    seen = []
    for each in networks:
        # The first layer's: ART calls the layers of an nn.Sequential itself.
        each[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    run(row, SIPWrapper(attack, salience), images, labels)
    assert len(seen) >= 1 or row.name in ("VANILA", "GN")
    for queries in [] if row.guided else seen:
        kept = (queries[:, None] == images[None]) | ~salience[None]
        assert kept.flatten(2).all(2).any(1).all()


@over([row for row in ATTACKS if any(part in str(row) for part in ("SPSA", "ART-Brendel", "L2Brendel", "PGD"))])
def test_so_it_does_for_images_that_are_not_contiguous(row, network, images, labels):
    if str(row) in ("PGDL2", "PGDRSL2"):
        pytest.skip("the bare attack views its images and fails")
    permuted = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    bare = run(row, row.build(network), permuted, labels, seed=3)
    assert same_values(run(row, SIPWrapper(row.build(network), torch.zeros(16, 16)), permuted, labels, seed=3), bare)


@over([row for row in ATTACKS if str(row) in ("JSMA", "SparseFool", "PGDL2", "FAB-Linf", "Square-L2", "AutoAttack")])
def test_attacks_that_fail_on_images_that_are_not_contiguous_work(row, network, images, labels, salience):
    permuted = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    found = [run(row, SIPWrapper(row.build(network), salience), x, labels, seed=3) for x in (images, permuted)]
    if row.name != "AutoAttack":  # of its attacks APGD takes the images as they are
        assert same_values(*found)
    assert torch.equal(found[1][salience], images[salience])


@every_attack
def test_a_map_of_ones_gives_the_clean_images(row, network, images, labels):
    assert torch.equal(run(row, SIPWrapper(row.build(network), torch.ones(16, 16)), images, labels), images)


def counted(row, mask, network, images, labels):
    """Rows of each query (or their sum, where the wrapper asks in other groups), what generators give next; the result."""
    counter = Counter(network).eval()
    attack = row.build(counter)
    counter.calls.clear()
    result = run(row, attack if mask is None else SIPWrapper(attack, mask), images, labels, seed=3)
    return ((list(counter.calls) if row.grouped else sum(counter.calls)), next_draws(row)), result


def next_draws(row):
    """What each generator gives next; equal after equally many draws."""
    return (torch.rand(4).tolist() if row.grouped else []), np.random.rand(4).tolist(), random.random()


def same_values(result, expected):
    """Equal bit for bit, also where a bare attack gives NaN (Foolbox's NewtonFoolAttack does)."""
    arrays = result.detach().numpy(), expected.detach().numpy()
    return result.dtype == expected.dtype and np.array_equal(*arrays, equal_nan=True)


@every_attack
def test_a_map_of_zeros_gives_the_bare_attacks_result_bit_for_bit_queries_and_random_draws(
    row, network, images, labels
):
    bare, expected = counted(row, None, network, images, labels)
    count, result = counted(row, torch.zeros_like(images, dtype=torch.bool), network, images, labels)
    assert count == bare
    assert same_values(result, expected)


@over([row for row in ATTACKS if row.fixed_steps])
def test_so_they_are_with_a_map_where_the_networks_answers_do_not_matter(row, network, images, labels, salience):
    bare, _ = counted(row, None, network, images, labels)
    assert counted(row, salience, network, images, labels)[0] == bare


def everything(network):
    """All that an attack may leave behind in a network."""
    return (
        [module.training for module in network.modules()],
        {name: buffer.clone() for name, buffer in network.named_buffers()},
        [(p.grad, None if p.grad is None else p.grad.clone(), p.requires_grad) for p in network.parameters()],
        [[len(getattr(module, registry)) for registry in HOOKS] for module in network.modules()],
    )


def same(before, after):
    modes, buffers, gradients, hooks = before
    assert modes == after[0]
    assert all(torch.equal(buffers[name], buffer) for name, buffer in after[1].items())
    for (grad, value, flag), (now, _, flag_now) in zip(gradients, after[2], strict=True):
        assert grad is now
        assert flag == flag_now
        assert grad is None or torch.equal(value, now)
    assert hooks == after[3]


class Fails(nn.Module):
    """A network that fails at its second query."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.left = 1

    def forward(self, x):
        if not self.left:
            raise RuntimeError("the network failed")
        self.left -= 1
        return self.network(x)


@every_attack
@pytest.mark.parametrize("ends", ["well", "in the attack", "in mask_fn"])
def test_nothing_is_left_behind(row, ends, network, images, labels, salience):
    fails = ends != "well"
    model = Fails(network) if ends == "in the attack" else network
    attack = row.build(model)  # some ask the network when they are built
    if ends == "in the attack":
        model.left = 1
    network.train(row.noisy)
    network[4].eval()  # a frozen BatchNorm in a network that is in training
    for index, parameter in enumerate(network.parameters()):
        parameter.grad = torch.ones_like(parameter) if index % 2 else None

    def mask_fn(x):
        if ends == "in mask_fn":
            asked = getattr(wrapper, "model", model)  # LGV has one of its own
            asked.eval()
            asked(x).sum().backward()
            raise RuntimeError("mask_fn failed")
        return salience

    images.requires_grad_()
    clean, state = images.detach().clone(), everything(model)
    references = row.references(attack)
    wrapper = SIPWrapper(attack, mask_fn)
    if ends == "in the attack":
        counter = Counter(copy.deepcopy(network)).eval()
        bare = row.build(counter)
        counter.calls.clear()
        run(row, bare, images.detach(), labels)
        fails = len(counter.calls) >= 2
    if fails:
        with pytest.raises(RuntimeError, match="failed"):
            run(row, wrapper, images, labels)
    else:
        run(row, wrapper, images, labels)
    same(state, everything(model))
    for get, before in references:
        assert get() is before or get() == before == set()
    assert not any("MemberProxy" in type(value).__name__ for value in vars(attack).values())
    assert torch.equal(images.detach(), clean)
    assert images.requires_grad
    assert images.grad is None
    assert torch.overrides._get_current_function_mode() is None


def test_a_training_mode_attack_leaves_no_batchnorm_statistics_behind(network, images, labels, salience):
    row, attack = PGD, PGD.build(network)
    attack.set_model_training_mode(model_training=True, batchnorm_training=True)
    state = everything(network)
    adversarial = run(row, SIPWrapper(attack, salience), images, labels)
    same(state, everything(network))
    bare = run(row, attack, images, labels)
    assert any(
        not torch.equal(state[1][name], buffer) for name, buffer in network.named_buffers()
    )  # as the bare one does
    assert torch.equal(adversarial[salience], images[salience])
    assert not torch.equal(adversarial, bare)


def test_a_graph_that_the_caller_holds_survives_a_call(network, images, labels, salience):
    loss = network(images).sum()
    run(PGD, SIPWrapper(PGD.build(network), salience), images, labels)
    loss.backward()


@every_attack
def test_a_batch_of_one_and_one_by_one_work(row, network, images, labels, salience):
    single = run(row, SIPWrapper(row.build(network), salience[:1]), images[:1], labels[:1])
    assert torch.equal(single[salience[:1]], images[:1][salience[:1]])
    images, labels, salience = images[:3], labels[:3], salience[:3]
    each = run(row, SIPWrapper(row.build(network), salience, one_by_one=True), images, labels)
    assert each.shape == images.shape
    assert torch.equal(each[salience], images[salience])
    if row.name != "LGV" and not row.guided:  # whose networks take turns from call to call; whose guide is another one
        assert torch.equal(each[:1], single)  # the first image sees the same random draws


def in_two_threads(work):
    """Call ``work(0)`` and ``work(1)`` at the same time."""
    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_threads_with_two_wrappers_on_one_model_do_not_see_each_other(network, images, labels):
    left = torch.zeros(16, 16, dtype=torch.bool)
    left[:, :8] = True
    maps = [left, ~left]
    rows = [row for row in TABLE if row.name in ("FGSM", "BIM", "MIFGSM")]  # without random draws, which threads share
    expected = [[run(r, SIPWrapper(r.build(network), m), images, labels) for r in rows] for m in maps]
    wrong = []

    def work(index):
        for _ in range(10):
            for row, result in zip(rows, expected[index], strict=True):
                adversarial = SIPWrapper(row.build(network), maps[index])(images, labels)
                if not torch.equal(adversarial, result):
                    wrong.append(row)

    network.train()
    in_two_threads(work)
    assert not wrong
    assert all(module.training for module in network.modules())


def test_one_attack_in_two_wrappers_takes_turns(network, images, labels, salience):
    attack = BIM.build(network)
    wrappers = [SIPWrapper(attack, salience), SIPWrapper(attack, ~salience)]
    expected = [w(images, labels) for w in wrappers]
    wrong = []

    def work(index):
        wrong.extend(i for i in range(10) if not torch.equal(wrappers[index](images, labels), expected[index]))

    in_two_threads(work)
    assert not wrong


@pytest.mark.parametrize("row", [r for r in TABLE if r.name in ("PGDL2", "CW")], ids=str)
def test_projecting_every_step_leaves_clearly_fewer_correct_images_than_late_masking(row, trained, digits):
    x, y = digits[0][1500:1548], digits[1][1500:1548]
    salience = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    arguments = {"PGDL2": {"eps": 1.5, "alpha": 0.3, "steps": 15}, "CW": {"c": 5, "steps": 60, "lr": 0.05}}[row.name]
    attack = type(row.build(trained))(trained, **arguments)

    def accuracy(batch):
        with torch.no_grad():
            return (trained(batch).argmax(1) == y).float().mean().item()

    late = accuracy(torch.where(salience, x, run(row, attack, x, y)))
    projected = accuracy(run(row, SIPWrapper(attack, salience), x, y))
    assert accuracy(x) > 0.85
    assert projected <= late - 0.15  # how far below depends on the network that a version of PyTorch trains


def test_wrapping_does_not_depend_on_the_seed_of_the_network_fixture(images, labels, salience):
    for seed in range(3):
        other = small_network(seed)
        adversarial = run(PGD, SIPWrapper(PGD.build(other), salience), images, labels)
        assert torch.equal(adversarial[salience], images[salience])
