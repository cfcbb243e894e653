"""torchattacks' own features, through the wrapper."""

import gc
import threading
import warnings
import weakref

import pytest
import torch
import torchattacks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from sip_plugin import SIPWrapper
from sip_plugin.adapters.projection import BatchProjection, ProjectedModel
from sip_plugin.adapters.specs import TORCHATTACKS
from sip_plugin.salience import GradientSalience
from tests.adapters import test_contract
from tests.adapters.table import TABLE
from tests.adapters.test_contract import in_two_threads
from tests.conftest import small_network


def run(attack, images, labels, **options):
    return test_contract.run(TABLE[0], attack, images, labels, **options)  # every row of torchattacks is called alike


def test_every_attack_of_torchattacks_is_in_the_adapters_table_and_in_the_tests():
    assert set(TORCHATTACKS.specs) == set(torchattacks.__all__)
    assert {row.name for row in TABLE} == set(torchattacks.__all__)


def normalising(network, mean, std):
    class Normalised(nn.Module):
        """Takes normalised images."""

        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, z):
            return self.network(z * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1))

    return Normalised().eval()


MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.mark.parametrize("mode", ["random", "least_likely", "by_label", "by_function"])
def test_targeted_modes_work_and_equal_the_bare_attack_at_a_map_of_zeros(mode, network, images, labels, salience):
    attack = torchattacks.PGD(network, eps=0.3, alpha=0.05, steps=8)
    wrapper = SIPWrapper(attack, salience)
    arguments = [lambda x, y: (y + 1) % 10] if mode == "by_function" else []
    getattr(wrapper, f"set_mode_targeted_{mode}")(*arguments, quiet=True)
    assert attack.targeted
    given = (labels + 1) % 10 if mode == "by_label" else labels
    torch.manual_seed(0)
    adversarial = wrapper(images, given)
    assert torch.equal(adversarial[salience], images[salience])
    torch.manual_seed(0)
    bare = attack(images, given)
    torch.manual_seed(0)
    assert torch.equal(wrapper(images, given, mask=torch.zeros(16, 16)), bare)
    if mode.startswith("by"):
        with torch.no_grad():
            towards = [network(x).gather(1, (labels[:, None] + 1) % 10).sum() for x in (images, adversarial)]
        assert towards[1] > towards[0]
    wrapper.set_mode_default()
    assert not attack.targeted


@pytest.mark.parametrize("name", ["PGD", "DIFGSM"])
def test_normalised_inputs_keep_map_and_equality_in_the_callers_space(name, network, images, labels, salience):
    attack = getattr(torchattacks, name)(normalising(network, MEAN, STD), eps=0.1, alpha=0.03, steps=4)
    wrapper = SIPWrapper(attack, salience)
    wrapper.set_normalization_used(mean=MEAN, std=STD)
    inputs = attack.normalize(images)
    torch.manual_seed(0)
    adversarial = wrapper(inputs, labels)
    assert torch.equal(adversarial[salience], inputs[salience])
    change = (attack.inverse_normalize(adversarial) - images).abs()
    assert change.max() <= 0.1 + 1e-5
    assert change[~salience].max() > 0.05
    torch.manual_seed(0)
    bare = attack(inputs, labels)
    torch.manual_seed(0)
    assert torch.equal(wrapper(inputs, labels, mask=torch.zeros(16, 16)), bare)
    with pytest.raises(ValueError, match=r"de-normalised.*\[0, 1\]"):
        wrapper(10 * inputs, labels)
    assert attack._normalization_applied is True


def test_the_normalisation_flag_survives_a_failing_attack(network, images, labels, salience):
    attack = torchattacks.PGD(network)
    wrapper = SIPWrapper(attack, salience)
    wrapper.set_normalization_used(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="below 10"):
        wrapper(images, labels + 90)
    assert attack._normalization_applied is True


def test_save_writes_projected_images(tmp_path, network, images, labels, capsys):
    half = torch.zeros(16, 16, dtype=torch.bool)
    half[:8] = True
    wrapper = SIPWrapper(torchattacks.PGD(network, eps=0.2, steps=3), half)
    network.train()
    network[1].eval()
    modes = [module.training for module in network.modules()]
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    accuracy, _, _ = wrapper.save(loader, str(tmp_path / "adv.pt"), return_verbose=True)
    saved = torch.load(tmp_path / "adv.pt", weights_only=True)
    assert torch.equal(saved["adv_inputs"][:, :, :8], images[:, :, :8])
    assert not torch.equal(saved["adv_inputs"], images)
    assert torch.equal(saved["labels"], labels)
    assert 0 <= accuracy <= 100
    assert "Robust accuracy" in capsys.readouterr().out
    assert [module.training for module in network.modules()] == modes


def test_wrapped_attacks_go_into_a_multi_attack(network, images, labels):
    half = torch.zeros(16, 16, dtype=torch.bool)
    half[:8] = True
    members = [
        SIPWrapper(torchattacks.FGSM(network, eps=0.2), half),
        SIPWrapper(torchattacks.PGD(network, eps=0.3), half),
    ]
    multi = torchattacks.MultiAttack(members)
    adversarial = multi(images, labels)
    assert torch.equal(adversarial[:, :, :8], images[:, :, :8])
    assert not torch.equal(adversarial, images)


def test_a_users_subclass_is_projected_as_its_parent(network, images, labels, salience):
    class Mine(torchattacks.DIFGSM):
        pass

    attack = Mine(network, eps=0.1, steps=3)
    torch.manual_seed(0)
    expected = SIPWrapper(torchattacks.DIFGSM(network, eps=0.1, steps=3), salience)(images, labels)
    torch.manual_seed(0)
    assert torch.equal(SIPWrapper(attack, salience)(images, labels), expected)


@pytest.mark.parametrize("name", ["PGD", "MIFGSM", "DIFGSM", "PGDL2"])
def test_images_without_a_free_element_are_returned_clean_among_others(name, network, images, labels, salience):
    salience[2] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adversarial = SIPWrapper(getattr(torchattacks, name)(network), salience)(images, labels)
    assert torch.equal(adversarial[2], images[2])
    assert adversarial.isfinite().all()
    assert not torch.equal(adversarial[3], images[3])


def test_nothing_of_a_call_is_kept_alive(network, salience, images, labels):
    """torchattacks keeps every value that was ever set on an attack in a default argument; ours must not get there."""
    for name in ("PGD", "DIFGSM"):
        SIPWrapper(getattr(torchattacks, name)(network, steps=2), salience)(images, labels)
    members = [torchattacks.FGSM(network), torchattacks.PGD(network)]
    SIPWrapper(torchattacks.MultiAttack(members), salience)(images, labels)
    gc.collect()
    assert not [o for o in gc.get_objects() if isinstance(o, (ProjectedModel, BatchProjection))]


def test_a_grey_image_and_one_that_is_not_square_work(salience):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    images, labels = torch.rand(5, 1, 9, 14), torch.tensor([0, 1, 2, 0, 1])
    mask = torch.rand(5, 1, 9, 14) < 0.5
    for attack in (torchattacks.PGD(model), torchattacks.PGDL2(model), torchattacks.CW(model, steps=3)):
        adversarial = SIPWrapper(attack, mask)(images, labels)
        assert torch.equal(adversarial[mask], images[mask])


def test_double_precision_works(network, images, labels, salience):
    adversarial = SIPWrapper(torchattacks.PGD(network.double()), salience)(images.double(), labels)
    assert adversarial.dtype == torch.float64
    assert torch.equal(adversarial[salience], images.double()[salience])


def test_labels_of_another_integer_dtype_work(network, images, labels, salience):
    adversarial = SIPWrapper(torchattacks.PGD(network, random_start=False), salience)(images, labels.int())
    assert torch.equal(adversarial, SIPWrapper(torchattacks.PGD(network, random_start=False), salience)(images, labels))


def test_a_compiled_model_gives_the_same_result_as_the_plain_one(network, images, labels, salience):
    compiled = torch.compile(network, backend="aot_eager")
    for name in ("PGD", "DIFGSM"):
        results = []
        for model in (network, compiled):
            torch.manual_seed(0)
            results.append(SIPWrapper(getattr(torchattacks, name)(model, steps=3), salience)(images, labels))
        assert torch.allclose(results[0], results[1], atol=1e-6)


def test_under_autocast_salient_elements_stay_exact(network, images, labels, salience):
    with torch.autocast("cpu", torch.bfloat16):
        for name in ("PGD", "APGD", "DIFGSM"):
            adversarial = SIPWrapper(getattr(torchattacks, name)(network, steps=3), salience)(images, labels)
            assert torch.equal(adversarial[salience], images[salience])


TARGETED = [row for row in TABLE if "targeted" in row.build(small_network()).supported_mode and row.name != "LGV"]


@pytest.mark.parametrize("row", TARGETED, ids=str)
@pytest.mark.parametrize("mode", ["random", "least_likely"])
def test_targeted_modes_of_every_attack_equal_the_bare_ones_at_a_map_of_zeros(
    row, mode, network, images, labels, salience
):
    attack = row.build(network)
    getattr(attack, f"set_mode_targeted_{mode}")(quiet=True)
    bare = run(attack, images, labels)
    assert torch.equal(run(SIPWrapper(attack, torch.zeros(16, 16)), images, labels), bare)
    adversarial = run(SIPWrapper(attack, salience), images, labels)
    assert torch.equal(adversarial[salience], images[salience])


@pytest.mark.parametrize("row", [r for r in TABLE if r.name not in ("AutoAttack", "MultiAttack", "LGV")], ids=str)
def test_normalised_inputs_of_every_attack_equal_the_bare_ones_at_a_map_of_zeros(
    row, network, images, labels, salience
):
    attack = row.build(network)
    attack.set_normalization_used(mean=MEAN, std=STD)
    inputs = attack.normalize(images)
    bare = run(attack, inputs, labels)
    assert torch.equal(run(SIPWrapper(attack, torch.zeros(16, 16)), inputs, labels), bare)
    adversarial = run(SIPWrapper(attack, salience), inputs, labels)
    assert torch.equal(adversarial[salience], inputs[salience])


def test_a_wrapped_composite_works_on_normalised_inputs(network, images, labels, salience):
    attack = next(row for row in TABLE if row.name == "MultiAttack").build(network)
    attack.set_normalization_used(mean=MEAN, std=STD)
    inputs = attack.normalize(images)
    adversarial = run(SIPWrapper(attack, salience), inputs, labels)
    assert torch.equal(adversarial[salience], inputs[salience])
    assert not torch.equal(adversarial, inputs)
    bare = run(attack, inputs, labels)
    assert torch.equal(run(SIPWrapper(attack, torch.zeros(16, 16)), inputs, labels), bare)


def test_a_wrapped_member_of_a_wrapped_composite_leaves_what_either_map_marks(network, images, labels):
    upper, left = (torch.zeros(16, 16, dtype=torch.bool) for _ in range(2))
    upper[:4], left[:, :4] = True, True
    members = [
        SIPWrapper(torchattacks.FGSM(network, eps=0.3), upper),
        SIPWrapper(torchattacks.PGD(network, eps=0.3), upper),
    ]
    adversarial = SIPWrapper(torchattacks.MultiAttack(members), left)(images, labels)
    either = (upper | left).expand_as(images)
    assert torch.equal(adversarial[either], images[either])
    assert not torch.equal(adversarial, images)


def test_every_query_of_a_composite_is_projected(network, images, labels, salience):
    """A member that steps on unprojected images would be late masking, which the final select hides."""
    attack = torchattacks.MultiAttack([torchattacks.PGD(network, eps=0.05), torchattacks.Square(network, n_queries=20)])
    seen = []
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    run(SIPWrapper(attack, salience), images, labels)
    assert len(seen) > 25
    for queries in seen:
        kept = (queries[:, None] == images[None]) | ~salience[None]
        assert kept.flatten(2).all(2).any(1).all()


def test_a_multi_attack_can_be_saved_through_the_wrapper(tmp_path, network, images, labels):
    half = torch.zeros(16, 16, dtype=torch.bool)
    half[:8] = True
    attack = torchattacks.MultiAttack([torchattacks.FGSM(network, eps=0.2), torchattacks.PGD(network, eps=0.2)])
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    SIPWrapper(attack, half).save(loader, str(tmp_path / "adv.pt"), verbose=False)
    saved = torch.load(tmp_path / "adv.pt", weights_only=True)["adv_inputs"]
    assert torch.equal(saved[:, :, :8], images[:, :, :8])
    assert not torch.equal(saved, images)
    assert "__call__" not in vars(attack)


def test_near_identical_images_with_different_maps(network, images, labels):
    """Queries of part of the batch go by distance, which a perturbation can outweigh; one image at a time cannot err."""
    twins = images[:1].repeat(2, 1, 1, 1)
    twins[1] += 1e-4
    other = torch.cat([twins, images[1:2]])
    y = torch.cat([labels[:1], labels[:1], (labels[1:2] + 1) % 10])  # the third is misclassified, so two of three go on
    maps = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    maps[0, :, :8], maps[1, :, 8:] = True, True
    attack = torchattacks.Square(network, eps=0.3, n_queries=30)
    seen = []
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))

    exact = run(SIPWrapper(attack, maps, one_by_one=True), other, y)
    free = ~maps.expand_as(other)
    assert torch.equal(exact[~free], other[~free])
    single = [q for q in seen if len(q) == 1]
    assert len(single) == len(seen)
    seen.clear()
    batched = run(SIPWrapper(attack, maps), other, y)
    assert torch.equal(batched[~free], other[~free])


class _Live(TorchDispatchMode):
    """The most bytes of tensors made inside that were alive at once."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage):
        key = storage.data_ptr()
        if key in self.sizes or not storage.nbytes():
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key):
        self.now -= self.sizes.pop(key, 0)


@pytest.mark.parametrize("name", ["FGSM", "PGD", "PGDL2", "DIFGSM", "APGD", "Square"])
def test_the_wrapper_adds_no_more_than_two_image_sized_tensors(name, images, labels):
    if name in ("APGD", "Square") and torch.__version__ < "2.6":
        pytest.skip("as_subclass() fails under a TorchDispatchMode, the measure, on PyTorch 2.4")
    x, y = images.repeat(20, 1, 1, 1), labels.repeat(20)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    attack = getattr(torchattacks, name)(model, **({"n_queries": 5} if name == "Square" else {}))
    mask = torch.rand(x.shape) < 0.5
    peaks = []
    for each in (attack, SIPWrapper(attack, mask)):
        with _Live() as live:
            live._count(x.untyped_storage())  # the caller's own
            run(each, x, model(x).argmax(1) if name == "Square" else y)
        peaks.append(live.peak)
    assert peaks[0] >= 2 * x.nbytes  # the measure measures
    assert peaks[1] - peaks[0] <= 2 * x.nbytes + mask.nbytes


def test_maps_are_made_of_images_in_01_where_inputs_are_normalised(network, images, labels):
    attack = torchattacks.PGD(normalising(network, MEAN, STD), steps=2)
    wrapper = SIPWrapper(attack, GradientSalience(network))
    wrapper.set_normalization_used(mean=MEAN, std=STD)
    inputs = attack.normalize(images)
    adversarial = wrapper(inputs, labels)
    salience = GradientSalience(network)(attack.inverse_normalize(inputs).clamp(0, 1))
    assert torch.equal(adversarial[salience], inputs[salience])


def test_wrapped_members_of_a_normalised_multi_attack_are_asked_about_normalised_clean_values(
    network, images, labels, salience
):
    images[0, 0, 0, 0] = 0.0  # comes back from normalisation as a tiny negative number
    model = normalising(network, MEAN, STD)
    half = torch.zeros(16, 16, dtype=torch.bool)
    half[:8] = True
    members = [
        SIPWrapper(torchattacks.BIM(model, eps=0.05), half),
        SIPWrapper(torchattacks.DIFGSM(model, eps=0.1), half),
    ]
    multi = torchattacks.MultiAttack(members)
    multi.set_normalization_used(mean=MEAN, std=STD)
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    inputs = multi.normalize(images)
    adversarial = multi(inputs, labels)
    assert torch.allclose(adversarial[:, :, :8], inputs[:, :, :8], atol=1e-5)
    assert len(seen[0]) == len(images)
    assert torch.allclose(seen[0][:, :, :8], inputs[:, :, :8], atol=1e-5)


def test_the_iterate_of_a_normalised_attack_is_projected_in_01(network, images, labels, salience):
    """Selecting normalised values into an iterate in [0, 1] would send the network far away from the images."""
    model = normalising(network, MEAN, STD)
    attack = torchattacks.DIFGSM(model, eps=0.1, steps=3, diversity_prob=0.0)
    wrapper = SIPWrapper(attack, salience)
    wrapper.set_normalization_used(mean=MEAN, std=STD)
    inputs = attack.normalize(images)
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    wrapper(inputs, labels)
    assert all(torch.allclose(queries[salience], inputs[salience], atol=1e-5) for queries in seen)


def test_a_member_shared_by_two_wrappers_in_two_threads_takes_turns(network, images, labels):
    left = torch.zeros(16, 16, dtype=torch.bool)
    left[:, :8] = True
    shared, other = torchattacks.BIM(network, eps=0.1, steps=6), torchattacks.FGSM(network, eps=1e-3)
    wrappers = SIPWrapper(torchattacks.MultiAttack([shared, other]), left), SIPWrapper(shared, ~left)
    expected = [wrapper(images, labels) for wrapper in wrappers]
    wrong = []
    in_two_threads(
        lambda i: wrong.extend(n for n in range(6) if not torch.equal(wrappers[i](images, labels), expected[i]))
    )
    assert not wrong
    assert shared.model is network


def test_a_composite_that_ends_leaves_another_threads_network_in_eval_mode(network, images, labels, salience):
    """torchattacks puts a training network back itself at the end of a call, whoever else uses it."""
    network.train()
    started, ended, modes = threading.Event(), threading.Event(), []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            if threading.current_thread() is not threading.main_thread():
                started.set()
                ended.wait(10)
                modes.append(network.training)
            return self.network(x)

    model = Watched()
    members = [torchattacks.FGSM(model), torchattacks.BIM(model, steps=2)]
    thread = threading.Thread(target=SIPWrapper(torchattacks.BIM(model, steps=3), salience), args=(images, labels))
    thread.start()
    started.wait(10)
    SIPWrapper(torchattacks.MultiAttack(members), salience)(images, labels)
    ended.set()
    thread.join(30)
    assert modes == [False] * 3
    assert all(module.training for module in network.modules())


def test_a_composite_in_training_mode_equals_the_bare_one_at_a_map_of_zeros(network, images, labels):
    def build():
        members = [torchattacks.FGSM(network, eps=0.01), torchattacks.PGD(network, eps=0.05, steps=2)]
        attack = torchattacks.MultiAttack(members)
        attack.set_model_training_mode(model_training=True)
        return attack

    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    bare = run(build(), images, labels)
    draws = torch.rand(3)
    network.load_state_dict(state)
    network.train()
    assert torch.equal(run(SIPWrapper(build(), torch.zeros(16, 16)), images, labels), bare)
    assert torch.equal(torch.rand(3), draws)


def test_a_users_class_of_the_same_name_is_projected_at_its_queries(network, images, labels, salience):
    class DIFGSM(torchattacks.attack.Attack):
        """A black-box attack of the user's own."""

        def __init__(self, model):
            super().__init__("DIFGSM", model)

        def forward(self, images, labels):
            candidates = [(images + 0.1 * torch.randn_like(images)).clamp(0, 1) for _ in range(4)]
            losses = torch.stack([self.get_logits(c).gather(1, labels[:, None])[:, 0] for c in candidates])
            return torch.stack(candidates)[losses.argmin(0), torch.arange(len(images))]

    seen = []
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    SIPWrapper(DIFGSM(network), salience)(images, labels)
    assert len(seen) == 4
    assert all(torch.equal(queries[salience], images[salience]) for queries in seen)


class Brighter(torchattacks.PGD):
    """Writes into its images."""

    def forward(self, images, labels):
        return super().forward(images.add_(0.05).clamp_(0, 1), labels)


def test_a_derived_attack_may_write_into_its_images(network, images, labels, salience):
    before = images.clone()
    adversarial = SIPWrapper(Brighter(network, steps=2), salience)(images, labels)
    assert torch.equal(images, before)
    assert torch.equal(adversarial[salience], images[salience])


def test_targets_are_not_handed_to_mask_fn_as_labels(network, images, labels, salience):
    seen = []
    wrapper = SIPWrapper(torchattacks.PGD(network, steps=1), lambda images, labels: (seen.append(labels), salience)[1])
    wrapper(images, labels)
    wrapper.set_mode_targeted_by_label(quiet=True)
    wrapper(images, (labels + 1) % 10)
    wrapper.set_mode_targeted_random(quiet=True)
    wrapper(images, labels)
    assert [given if given is None else given.tolist() for given in seen] == [labels.tolist(), None, labels.tolist()]


def test_steps_past_the_model_of_an_attack_of_ones_own_are_said(network, images, labels, salience):
    class Past(torchattacks.attack.Attack):
        def __init__(self, model):
            super().__init__("Past", model)
            self.loss = lambda x, y: nn.functional.cross_entropy(network(x), y)

        def forward(self, images, labels):
            self.get_logits(images)
            x = images.clone().requires_grad_()
            return (images + 0.1 * torch.autograd.grad(self.loss(x, labels), x)[0].sign()).clamp(0, 1)

    with pytest.warns(RuntimeWarning, match=r"1 call\(s\) of its network past .model"):
        SIPWrapper(Past(network), salience)(images, labels)


def test_a_derived_composite_runs_image_by_image_and_members_may_be_a_tuple(network, images, labels, salience):
    class Mine(torchattacks.MultiAttack):
        pass

    members = torchattacks.FGSM(network, eps=0.07), torchattacks.PGD(network, eps=0.3, steps=3)
    with pytest.warns(RuntimeWarning, match="Each image is attacked in a batch of its own"):
        adversarial = SIPWrapper(Mine(list(members)), salience)(images, labels)
    assert torch.equal(adversarial[salience], images[salience])
    adversarial = SIPWrapper(torchattacks.MultiAttack(members), salience)(images, labels)
    assert torch.equal(adversarial[salience], images[salience])
    assert not torch.equal(adversarial, images)


def test_one_by_one_of_a_wrapped_member_is_kept(network, images, labels, salience):
    sizes = []
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    member = SIPWrapper(torchattacks.BIM(network, steps=2), salience, one_by_one=True)
    SIPWrapper(torchattacks.MultiAttack([member, torchattacks.FGSM(network)]), torch.zeros(16, 16))(images, labels)
    assert sizes[: 2 * len(images)] == [1] * (2 * len(images))


@pytest.fixture
def lgv(network, monkeypatch):
    monkeypatch.setattr("torchattacks.wrappers.lgv.shuffle", lambda models: None)
    return next(row for row in TABLE if row.name == "LGV").build(network)


def test_lgv_among_others_collects_its_networks_before_anything_is_put_back(lgv, images, labels):
    attack = torchattacks.MultiAttack([lgv, torchattacks.FGSM(lgv.model, eps=0.01)])
    SIPWrapper(attack, torch.zeros(16, 16))(images, labels)
    assert len(lgv.list_models) == 2
    trained = lgv.list_models[-1].state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in lgv.model.state_dict().items())


def test_lgv_saved_at_once_keeps_its_networks_statistics(tmp_path, lgv, images, labels, capsys):
    SIPWrapper(lgv, torch.zeros(16, 16)).save([(images, labels)], str(tmp_path / "saved.pt"))
    trained = lgv.list_models[-1].state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in lgv.model.state_dict().items())


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", ["JSMA", "OnePixel", "PGD"])
def test_targets_of_the_users_own_function_are_those_of_the_whole_batch(name, alone, network, images, labels, salience):
    arguments = {"JSMA": {"gamma": 0.002}, "OnePixel": {"steps": 1, "popsize": 4}, "PGD": {"steps": 1}}[name]
    attack = getattr(torchattacks, name)(network, **arguments)
    fixed = (labels + torch.arange(1, 7)) % 10
    attack.set_mode_targeted_by_function(lambda images, labels: fixed, quiet=True)
    targets = []
    get_target_label = attack.get_target_label

    def seen(*args):
        targets.append(get_target_label(*args))
        return targets[-1]

    vars(attack)["get_target_label"] = seen
    SIPWrapper(attack, salience, one_by_one=alone)(images, labels)
    assert torch.cat(targets).tolist() == fixed.tolist()
