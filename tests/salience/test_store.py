"""MaskStore: the maps that were computed, and no damage is read as a map."""

import copy
import json
import multiprocessing
import pickle
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sip_plugin.salience import GradientSalience, MaskStore
from tests.adapters.test_contract import everything, same

N, SHAPE = 53, (3, 7, 5)  # 105 bits: the last byte of a map is not full


@pytest.fixture
def x():
    return torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)


@pytest.fixture
def y():
    return torch.arange(N) % 4


@pytest.fixture
def dataset(x, y):
    return TensorDataset(x, y)


@pytest.fixture
def store(tmp_path, dataset):
    return MaskStore.build(tmp_path / "m", dataset, bright, 8, progress=False)


def bright(images):
    return images > 0.5


def by_labels(images, labels):
    return images > labels[:, None, None, None] / 4


# --- what comes out is what went in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 5, 52, 53, 1000])
def test_the_maps_are_those_of_the_mask_function(batch_size, tmp_path, dataset, x):
    store = MaskStore.build(tmp_path / "m", dataset, bright, batch_size, progress=False)
    assert len(store) == N
    assert store.shape == (N, *SHAPE)
    assert torch.equal(store[:], x > 0.5)
    assert store[:].dtype == torch.bool
    assert torch.equal(MaskStore(tmp_path / "m")[:], x > 0.5)
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"maps.npy", "info.json", ".lock"}
    assert not np.load(tmp_path / "m" / "maps.npy").dtype.hasobject


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 28, 28), (3, 32, 32), (4, 9, 2)])
@pytest.mark.parametrize("length", [1, 31])
def test_images_of_any_shape_and_number(shape, length, tmp_path):
    x = torch.rand(length, *shape)
    store = MaskStore.build(tmp_path / "m", TensorDataset(x, torch.zeros(length).long()), bright, 8, progress=False)
    assert torch.equal(store[:], x > 0.5)
    packed = -(-x[0].numel() // 8)
    assert (tmp_path / "m" / "maps.npy").stat().st_size <= 192 + length * (packed + 8)


def test_an_index_is_that_of_an_array(store, x):
    maps = x > 0.5
    for index in (0, 7, -1, -N, N - 1, np.int64(3), torch.tensor(3), np.array(3)):
        assert torch.equal(store[index], maps[int(index)])
        assert store[index].shape == SHAPE
    some = [5, -1, 0, 5, 52]
    for indices in (some, np.array(some), torch.tensor(some), torch.tensor(some, dtype=torch.int32)):
        assert torch.equal(store[indices], maps[some])
    for mask in (torch.arange(N) % 3 == 0, np.arange(N) % 3 == 0):
        assert torch.equal(store[mask], maps[::3])
    for cut in (slice(None), slice(3, 30, 4), slice(None, None, -1), slice(-5, None), slice(10, 10), slice(0, 10**9)):
        assert torch.equal(store[cut], maps[range(N)[cut]])
    assert torch.equal(store[range(3, 9)], maps[3:9])
    assert store[[]].shape == (0, *SHAPE)
    assert torch.equal(torch.stack(list(store)), maps)


@pytest.mark.parametrize("index", [N, -N - 1, [0, N], torch.tensor([N]), 1.0, "map", {1, 2}])
def test_an_image_that_is_not_there_is_an_index_error(index, store):
    with pytest.raises(IndexError):
        store[index]


def test_what_is_read_may_be_written_to_and_no_one_else_sees_it(store, x):
    store[3].logical_not_()
    store[[3]].fill_(True)
    assert torch.equal(store[3], x[3] > 0.5)


def test_maps_that_are_the_same_for_all_channels_take_one_bit_a_pixel(tmp_path, store, dataset, x):
    grey = (x.sum(1, keepdim=True) > 1.5).expand_as(x)
    sources = {
        "one channel": lambda images: images.sum(1, keepdim=True) > 1.5,
        "a view": lambda images: (images.sum(1, keepdim=True) > 1.5).expand_as(images),
        "numbers": lambda images: (images.sum(1, keepdim=True) > 1.5).float(),
        "one map for all": torch.ones(1, 1, 7, 5),
    }
    for name, source in sources.items():
        one = MaskStore.build(tmp_path / name, dataset, source, 8, progress=False)
        assert one.shape == (N, *SHAPE)
        assert torch.equal(one[:], grey if callable(source) else torch.ones_like(grey))
        assert one[0].shape == SHAPE
        assert (tmp_path / name / "maps.npy").stat().st_size < (store.path / "maps.npy").stat().st_size
        assert one[:].stride(1) == 0


def test_one_map_for_every_image(tmp_path, dataset):
    half = torch.arange(7)[:, None].expand(7, 5) < 3
    for source in (half, half.numpy(), half[None, None], half.float()):
        store = MaskStore.build(tmp_path / "m", dataset, source, 8, overwrite=True, progress=False)
        assert torch.equal(store[:], half.expand(N, *SHAPE))


def test_a_mask_function_may_ask_for_labels(tmp_path, dataset, x, y):
    store = MaskStore.build(tmp_path / "m", dataset, by_labels, 10, progress=False)
    assert torch.equal(store[:], x > y[:, None, None, None] / 4)


def test_images_may_be_tensors_or_pil_images_and_are_floats_in_0_1_for_the_mask_function(tmp_path, x, y):
    pil = pytest.importorskip("PIL.Image")
    v2 = pytest.importorskip("torchvision.transforms.v2.functional")
    bytes_ = x.mul(255).round().to(torch.uint8)
    pictures = [pil.fromarray(image.permute(1, 2, 0).numpy()) for image in bytes_]
    seen = []

    class Source:
        def __call__(self, images):
            seen.append(images)
            return images > 0.5

    sets = {"pil": pictures, "uint8": list(bytes_), "float": list(x)}
    for name, images in sets.items():
        seen.clear()
        data = [(image, int(label)) for image, label in zip(images, y, strict=True)]
        store = MaskStore.build(tmp_path / name, data, Source(), 9, progress=False)
        got = torch.cat(seen)
        assert got.dtype == torch.float32
        if name in ("pil", "uint8"):
            wanted = [v2.to_dtype(v2.to_image(image), torch.float32, scale=True) for image in images]
            assert torch.equal(got, torch.stack(wanted))
        assert torch.equal(store[:], got > 0.5)
        for others in sets.values():  # the same images, in whatever form
            store.check([(image, 0) for image in others], every=True)


def test_building_is_one_forward_and_one_backward_to_the_input_per_batch(tmp_path, network, digits):
    dataset = TensorDataset(digits[0][:50], digits[1][:50])
    network.train()
    for parameter in list(network.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    before, passes = everything(network), []
    hooks = [
        network.register_forward_hook(lambda module, args, out: passes.append(("forward", len(args[0])))),
        network[0].register_full_backward_hook(lambda *_: passes.append(("backward", 0))),
    ]
    hooks += [p.register_hook(lambda g: passes.append(("parameter", 0))) for p in network.parameters()]
    store = MaskStore.build(tmp_path / "m", dataset, GradientSalience(network), 16, progress=False)
    for hook in hooks:
        hook.remove()
    assert passes == [(kind, rows) for n in (16, 16, 16, 2) for kind, rows in (("forward", n), ("backward", 0))]
    same(before, everything(network))
    mask_fn = GradientSalience(network)
    assert torch.equal(store[:], torch.cat([mask_fn(batch) for batch in digits[0][:50].split(16)]))


def test_a_function_that_leaves_traces_in_its_network_is_cleaned_up_after(tmp_path, network, digits):
    network.train()
    before = everything(network)

    def careless(images):
        images.requires_grad_()
        network(images).sum().backward()
        return images.grad.abs() > images.grad.abs().mean()

    MaskStore.build(tmp_path / "m", TensorDataset(digits[0][:20], digits[1][:20]), careless, progress=False)
    same(before, everything(network))


def test_building_draws_nothing_from_the_random_generators(tmp_path, dataset):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    MaskStore.build(tmp_path / "m", dataset, bright, 8, progress=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_workers_load_the_images(tmp_path, store, dataset):
    MaskStore.build(tmp_path / "workers", dataset, bright, 8, num_workers=2, progress=False)
    assert (tmp_path / "workers" / "maps.npy").read_bytes() == (store.path / "maps.npy").read_bytes()


def test_images_come_where_the_teacher_is(tmp_path, dataset):
    seen = []

    class Source:
        def __init__(self):
            self.teacher = nn.Linear(1, 1, device="meta")

        def __call__(self, images):
            seen.append(images.device.type)
            return torch.zeros(1, 1, 7, 5)

        def provenance(self):
            return {}

    with pytest.raises(RuntimeError, match="meta"):  # a meta tensor has no values
        MaskStore.build(tmp_path / "m", dataset, Source(), progress=False)
    MaskStore.build(tmp_path / "m", dataset, Source(), device="cpu", progress=False)
    assert seen == ["cpu"]


def test_there_is_a_progress_bar_if_wanted_and_installed(tmp_path, dataset, capsys, monkeypatch):
    pytest.importorskip("tqdm")
    MaskStore.build(tmp_path / "a", dataset, bright)
    assert f"{N}/{N}" in capsys.readouterr().err
    MaskStore.build(tmp_path / "b", dataset, bright, progress=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.warns(UserWarning, match=r"sip-plugin\[progress\]"):
        MaskStore.build(tmp_path / "c", dataset, bright)
    assert capsys.readouterr().err == ""


# --- a store as an object -------------------------------------------------------------------------------------------------


def test_it_says_what_made_it(tmp_path, dataset, network):
    pooled = nn.Sequential(nn.UpsamplingNearest2d((16, 16)), network)
    store = MaskStore.build(tmp_path / "m", dataset, GradientSalience(pooled, 0.3), progress=False)
    made = MaskStore(tmp_path / "m").provenance
    assert made == store.provenance
    assert (made["mass"], made["target"], len(made["teacher"]["model_hash"])) == (0.3, "predicted", 64)


def test_it_can_be_pickled_and_copied(tmp_path, dataset, x, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = MaskStore.build("m", dataset, bright, progress=False)
    monkeypatch.chdir("/")
    data = pickle.dumps(store)
    assert len(data) < 2000
    for other in (pickle.loads(data), copy.copy(store), copy.deepcopy(store)):
        assert torch.equal(other[:], x > 0.5)
        other.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no open file")
def test_it_still_has_the_file_it_opened_when_another_takes_its_place(tmp_path, dataset, store, x):
    MaskStore.build(tmp_path / "m", dataset, lambda images: images < 0.5, overwrite=True, progress=False)
    assert torch.equal(store[:], x > 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("context", [None, *sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods()))])
def test_workers_of_a_loader_read_it(context, store, x):
    workers = {"num_workers": 2, "multiprocessing_context": context} if context else {}
    assert torch.equal(torch.cat(list(DataLoader(store, batch_size=10, **workers))), x > 0.5)


def test_threads_read_it_at_once(store, x):
    wrong = []

    def read(seed):
        for indices in torch.randint(N, (100, 8), generator=torch.Generator().manual_seed(seed)):
            if not torch.equal(store[indices], x[indices] > 0.5):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_a_closed_store_cannot_be_read(store):
    with store:
        assert store[0].shape == SHAPE
    store.close()
    with pytest.raises(ValueError, match="is closed"):
        store[0]


# --- damage ---------------------------------------------------------------------------------------------------------------


def read_all(path):
    with MaskStore(path) as store:
        return store[:]


@pytest.mark.parametrize(("name", "head"), [("maps.npy", -9 * 22), ("info.json", None)])
def test_no_flipped_bit_anywhere_is_read_as_a_map(name, head, tmp_path, x):
    MaskStore.build(tmp_path / "m", TensorDataset(x[:9], torch.zeros(9).long()), bright, 4, progress=False)
    path = tmp_path / "m" / name
    whole = path.read_bytes()
    harmless = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            maps = read_all(tmp_path / "m")
        except Exception:  # of a damaged header NumPy may raise anything
            continue
        assert torch.equal(maps, x[:9] > 0.5)  # such as a blank of the header that became another one
        assert place in range(len(whole))[:head]
        harmless += 1
    assert harmless < len(whole) / 10
    path.write_bytes(whole)
    MaskStore(tmp_path / "m").verify()


def test_damage_is_named_with_its_image_and_leaves_the_others_readable(store, x):
    path = store.path / "maps.npy"
    whole = path.read_bytes()
    record = 14 + 8
    for image, bit in ((0, 0), (17, 99), (N - 1, 8 * record - 1)):
        data = bytearray(whole)
        data[len(whole) - record * (N - image) + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)  # also seen through the memory map of the store that is open
        others = [k for k in range(N) if k != image]
        for reader in (store, MaskStore(store.path)):
            assert torch.equal(reader[others], x[others] > 0.5)
            for read in (lambda reader=reader, image=image: reader[image], reader.verify):
                with pytest.raises(ValueError, match=rf"damaged at the map of image {image}\."):
                    read()


def test_a_file_that_was_cut_off_is_refused(store):
    path = store.path / "maps.npy"
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises((ValueError, EOFError)):
            MaskStore(store.path)


def test_what_is_no_store_is_refused(tmp_path, store, dataset):
    with pytest.raises(FileNotFoundError):
        MaskStore(tmp_path / "none")
    old = tmp_path / "old.sip"
    old.write_bytes(b"SIPMAPS1" + bytes(100))
    for call in (lambda: MaskStore(old), lambda: MaskStore.build(old, dataset, bright, overwrite=True)):
        with pytest.raises(ValueError, match=r"stores of sip-plugin 0\.1 were; build it again"):
            call()
    for content in ("{}", json.dumps({"format": "another"})):
        (store.path / "info.json").write_text(content)
        with pytest.raises(ValueError, match="not that of a mask store"):
            MaskStore(store.path)


# --- whose maps they are --------------------------------------------------------------------------------------------------


def test_another_data_set_is_refused(store, dataset, x, y):
    store.check(dataset, every=True)
    one_changed = x.clone()
    one_changed[0, 0, 0, 0] = 1 - one_changed[0, 0, 0, 0]
    for other, says in {
        TensorDataset(x[:-1], y[:-1]): "maps of 53 images, and the data set has 52",
        TensorDataset(x[..., :4], y): "Image 0 is not the one",
        TensorDataset(x.flip(0), y): "Image 0 is not the one",
        TensorDataset(one_changed, y): "Image 0 is not the one",
    }.items():
        with pytest.raises(ValueError, match=says):
            store.check(other)


def test_other_labels_are_another_data_set_where_maps_were_made_with_labels(tmp_path, store, dataset, x, y):
    with_labels = MaskStore.build(tmp_path / "labels", dataset, by_labels, progress=False)
    relabelled = TensorDataset(x, 3 - y)
    store.check(relabelled, every=True)
    with pytest.raises(ValueError, match=r"Image 0 \(or its label\)"):
        with_labels.check(relabelled)
    with pytest.raises(FileExistsError, match="dataset: "):
        MaskStore.build(tmp_path / "labels", relabelled, by_labels, progress=False)
    one_other = y.clone()
    one_other[11] += 1  # not in the sample
    with_labels.check(TensorDataset(x, one_other))
    with pytest.raises(ValueError, match=r"Image 11 \(or its label\)"):
        with_labels.check(TensorDataset(x, one_other), every=True)


def test_maps_are_only_given_to_the_labels_that_they_were_made_of(tmp_path, dataset, x, y):
    store = MaskStore.build(tmp_path / "m", dataset, by_labels, progress=False)
    for labels in (y[[3, 9]], y[[3, 9]].tolist(), list(y[[3, 9]].numpy())):
        assert torch.equal(store.maps_of([3, 9], [x[3], x[9]], labels), store[[3, 9]])
    with pytest.raises(ValueError, match=r"Image 9 \(or its label\) is not the one"):
        store.maps_of([3, 9], [x[3], x[9]], [y[3], y[9] + 1])
    with pytest.raises(TypeError):
        store.maps_of([3], [x[3]], ["cat"])
    with pytest.raises(ValueError, match=r"Image 3 \(or its label\)"):
        store.maps_of([3], [x[3]])


def test_the_labels_of_a_gradients_true_class_are_part_of_the_data_set(tmp_path, network, digits):
    images, labels = digits[0][:40], digits[1][:40]
    source = GradientSalience(network, target="true")
    MaskStore.build(tmp_path / "m", TensorDataset(images, labels), source, 16, progress=False)
    with pytest.raises(FileExistsError, match="dataset: "):
        MaskStore.build(tmp_path / "m", TensorDataset(images, (labels + 1) % 10), source, 16, progress=False)


def test_maps_are_only_given_to_the_images_that_they_were_made_of(store, x):
    assert torch.equal(store.maps_of([3, 9], [x[3], x[9]]), x[[3, 9]] > 0.5)
    assert torch.equal(store.maps_of([3], [x[3].mul(255).round().to(torch.uint8)]), x[[3]] > 0.5)
    with pytest.raises(ValueError, match="Image 9 is not the one"):
        store.maps_of([3, 9], [x[3], x[8]])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0)).tolist()
    for here, there in enumerate(order):
        if here != there:
            with pytest.raises(ValueError, match=f"Image {here} is not the one"):
                store.maps_of([here], [x[there]])


def test_a_data_set_that_augments_is_refused(tmp_path, x):
    class Flips(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, index):
            return (x[index].flip(-1) if torch.rand(()) < 0.5 else x[index]), 0

    class Relabels(Flips):
        def __getitem__(self, index):
            return x[index], int(torch.randint(100, ()))

    for dataset, mask_fn in ((Flips(), bright), (Relabels(), lambda images, labels: images > 0.5)):
        with pytest.raises(ValueError, match=r"another image each time.*SalientDataset"):
            MaskStore.build(tmp_path / "m", dataset, mask_fn, progress=False)
    assert not list(tmp_path.iterdir())
    MaskStore.build(tmp_path / "m", Relabels(), bright, progress=False)  # whose maps do not depend on labels


@pytest.mark.parametrize(
    ("items", "kind"),
    [
        ([], IndexError),
        ([torch.rand(3, 4, 4)] * 3, ValueError),
        ([(torch.rand(4, 4), 0)] * 3, ValueError),
        ([(torch.rand(3, 4, 4) * 255, 0)] * 3, ValueError),
        ([(torch.ones(3, 4, 4, dtype=torch.int64), 0)] * 3, TypeError),
        ([(np.ones((4, 4, 3)), 0)] * 3, TypeError),
        ([(torch.rand(3, 4, 4), 0), (torch.rand(3, 4, 5), 0)], RuntimeError),
        ([(torch.full((3, 4, 4), 0.5), "cat")] * 3, TypeError),
        ([(torch.full((3, 4, 4), 0.5), 0.5)] * 3, TypeError),
        (iter([(torch.rand(3, 4, 4), 0)]), TypeError),
    ],
)
def test_a_bad_data_set_is_an_error(items, kind, tmp_path):
    with pytest.raises(kind):
        MaskStore.build(tmp_path / "m", items, bright, progress=False)
    assert not list(tmp_path.glob("m/[!.]*"))


def test_an_odd_item_between_those_that_are_looked_at_first_is_found_too(tmp_path, x):
    for odd, says in {torch.rand(3, 9, 5): "equal size", torch.full(SHAPE, 1.5): r"mages 72 to 79.*\[0, 1\]"}.items():
        items = [(image, 0) for image in torch.cat([x, x])]
        items[77] = odd, 0
        with pytest.raises((ValueError, RuntimeError), match=says):
            MaskStore.build(tmp_path / "m", items, bright, 8, progress=False)
        with pytest.raises(ValueError, match="unfinished"):
            MaskStore(tmp_path / "m")


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        (lambda images: images, ValueError, "soft"),
        (lambda images: (images > 0.5)[:, :2], ValueError, "broadcastable"),
        (lambda images: None, TypeError, "NoneType"),
        (lambda images: torch.full_like(images, float("nan")), ValueError, "NaN"),
        (lambda images: (images > 0.5)[0], ValueError, "ambiguous"),
        (None, ValueError, "mask_fn"),
        (torch.ones(53, 3, 7, 5), ValueError, "must hold for every image"),
    ],
)
def test_a_bad_map_is_a_clear_error_and_leaves_no_file(source, kind, says, tmp_path, dataset):
    with pytest.raises(kind, match=says):
        MaskStore.build(tmp_path / "m", dataset, source, 8, progress=False)
    assert not list(tmp_path.glob("m/[!.]*"))
    MaskStore.build(tmp_path / "m", dataset, bright, 8, progress=False)


def test_maps_with_channels_after_maps_without_are_an_error(tmp_path, dataset):
    def source(images):
        return (images > 0.5)[:, :1] if len(images) == 8 else images > 0.5

    with pytest.raises(RuntimeError, match="expanded size"):
        MaskStore.build(tmp_path / "m", dataset, source, 8, progress=False)


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_bad_batch_size_is_refused(size, tmp_path, dataset):
    with pytest.raises(ValueError, match="batch_size"):
        MaskStore.build(tmp_path / "m", dataset, bright, size)
