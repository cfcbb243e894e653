"""MaskStore: the maps that were made, from a file that no damage makes wrong."""

import copy
import io
import json
import multiprocessing
import pickle
import struct
import sys
import threading
import zlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sip_plugin.salience import GradientSalience, MaskStore
from sip_plugin.salience.store_file import Header, Layout, StoreError
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


def bright(images):
    return images > 0.5


class Never:
    """A source that must not be asked."""

    def __call__(self, images):
        raise AssertionError("asked for maps that are there")

    def provenance(self):
        return {"of": "bright"}


class Bright(Never):
    def __call__(self, images):
        return bright(images)


# --- what comes out is what went in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 52, 53, 1000])
def test_the_maps_are_those_of_the_mask_function(batch_size, tmp_path, dataset, x):
    store = MaskStore.build(tmp_path / "maps.sip", dataset, bright, batch_size, progress=False)
    assert len(store) == N
    assert store.shape == (N, *SHAPE)
    assert torch.equal(store[:], x > 0.5)
    assert store[:].dtype == torch.bool
    assert torch.equal(MaskStore(tmp_path / "maps.sip")[:], x > 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["maps.sip"]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 28, 28), (3, 32, 32), (4, 9, 2), (3, 64, 64)])
@pytest.mark.parametrize("length", [1, 2, 31])
def test_images_of_any_shape_and_number(shape, length, tmp_path):
    x = torch.rand(length, *shape)
    store = MaskStore.build(tmp_path / "m", TensorDataset(x, torch.zeros(length).long()), bright, 8, progress=False)
    assert torch.equal(store[:], x > 0.5)
    assert (tmp_path / "m").stat().st_size == Layout(store._header).size


def test_an_index_is_that_of_a_sequence(tmp_path, dataset, x):
    store = MaskStore.build(tmp_path / "m", dataset, bright, progress=False)
    maps = x > 0.5
    for index in (0, 7, -1, -N, N - 1, np.int64(3), torch.tensor(3), np.array(3)):
        assert torch.equal(store[index], maps[int(index)])
        assert store[index].shape == SHAPE
    some = [5, -1, 0, 5, 52]
    for indices in (some, tuple(some), np.array(some), torch.tensor(some), torch.tensor(some, dtype=torch.int32)):
        assert torch.equal(store[indices], maps[some])
    assert torch.equal(store[[np.int64(4), torch.tensor(2)]], maps[[4, 2]])
    for cut in (slice(None), slice(3, 30, 4), slice(None, None, -1), slice(-5, None), slice(10, 10), slice(0, 10**9)):
        assert torch.equal(store[cut], maps[range(N)[cut]])
    assert torch.equal(store[range(3, 9)], maps[3:9])
    assert store[[]].shape == (0, *SHAPE)
    assert torch.equal(torch.stack(list(store)), maps)


@pytest.mark.parametrize("index", [N, -N - 1, 10**30, [0, N], torch.tensor([N]), np.array([-N - 1])])
def test_an_image_that_is_not_there_is_an_index_error(index, tmp_path, dataset):
    with pytest.raises(IndexError, match="no image"):
        MaskStore.build(tmp_path / "m", dataset, bright, progress=False)[index]


@pytest.mark.parametrize(
    "index",
    [True, 1.0, "1", None, ..., (slice(2),), torch.ones(N, dtype=torch.bool), np.ones(N, dtype=bool), [True, False],
     torch.zeros(2, 2).long(), torch.ones(2), {1, 2}],
)  # fmt: skip
def test_what_is_no_index_is_a_type_error(index, tmp_path, dataset):
    store = MaskStore.build(tmp_path / "m", dataset, bright, progress=False)
    with pytest.raises(TypeError, match=r"integer"):
        store[index]


def test_what_is_read_may_be_written_to_and_no_one_else_sees_it(tmp_path, dataset, x):
    store = MaskStore.build(tmp_path / "m", dataset, bright, progress=False)
    store[3].logical_not_()
    store[[3]].fill_(True)
    assert torch.equal(store[3], x[3] > 0.5)


def test_maps_that_are_the_same_for_all_channels_take_one_bit_a_pixel(tmp_path, dataset, x):
    grey = (x.sum(1, keepdim=True) > 1.5).expand_as(x)
    sources = {
        "one channel": lambda images: images.sum(1, keepdim=True) > 1.5,
        "a view": lambda images: (images.sum(1, keepdim=True) > 1.5).expand_as(images),
        "numbers": lambda images: (images.sum(1, keepdim=True) > 1.5).float(),
    }
    whole = MaskStore.build(
        tmp_path / "whole", dataset, lambda images: (images.sum(1, keepdim=True) > 1.5).repeat(1, 3, 1, 1)
    )
    for name, source in sources.items():
        store = MaskStore.build(tmp_path / name, dataset, source, 8, progress=False)
        assert store.shape == (N, *SHAPE)
        assert torch.equal(store[:], grey)
        assert store[0].shape == SHAPE
        assert (tmp_path / name).stat().st_size < (tmp_path / "whole").stat().st_size
        assert store[:].stride(1) == 0
    assert torch.equal(whole[:], grey)


def test_one_map_for_every_image(tmp_path, dataset):
    half = torch.arange(7)[:, None].expand(7, 5) < 3
    for source in (half, half.numpy(), half[None, None], half.float()):
        store = MaskStore.build(tmp_path / "m", dataset, source, 8, overwrite=True, progress=False)
        assert torch.equal(store[:], half.expand(N, *SHAPE))


def test_a_mask_function_may_ask_for_labels(tmp_path, dataset, x, y):
    store = MaskStore.build(
        tmp_path / "m", dataset, lambda images, labels: images > labels[:, None, None, None] / 4, 10
    )
    assert torch.equal(store[:], x > y[:, None, None, None] / 4)


def test_images_may_be_tensors_or_pil_images_and_are_floats_in_0_1_for_the_mask_function(tmp_path, x, y):
    pil = pytest.importorskip("PIL.Image")
    v2 = pytest.importorskip("torchvision.transforms.v2.functional")
    bytes_ = x.mul(255).round().to(torch.uint8)
    pictures = [pil.fromarray(image.permute(1, 2, 0).numpy()) for image in bytes_]
    seen = []

    def source(images):
        seen.append(images)
        return images > 0.5

    sets = {
        "pil": pictures,
        "uint8": list(bytes_),
        "float": list(x),
        "mixed": [*pictures[:20], *bytes_[20:40], *x[40:]],
    }
    for name, images in sets.items():
        seen.clear()
        data = [(image, int(label)) for image, label in zip(images, y, strict=True)]
        store = MaskStore.build(tmp_path / name, data, source, 9, progress=False)
        got = torch.cat(seen)
        assert got.dtype == torch.float32
        if name in ("pil", "uint8"):
            wanted = [v2.to_dtype(v2.to_image(image), torch.float32, scale=True) for image in images]
            assert torch.equal(got, torch.stack(wanted))
        assert torch.equal(store[:], got > 0.5)
        for others in sets.values():  # the same images, in whatever form
            store.check([(image, 0) for image in others])
    grey = [(pil.fromarray((image[0] * 255).round().to(torch.uint8).numpy()), 0) for image in x]
    assert torch.equal(MaskStore.build(tmp_path / "grey", grey, bright)[:], x[:, :1] > 0.5)


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
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    MaskStore.build(tmp_path / "m", dataset, bright, 8, progress=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_workers_load_the_images(tmp_path, dataset, x):
    store = MaskStore.build(tmp_path / "m", dataset, bright, 8, num_workers=2, progress=False)
    MaskStore.build(tmp_path / "alone", dataset, bright, 8, progress=False)
    assert torch.equal(store[:], x > 0.5)
    assert (tmp_path / "m").read_bytes() == (tmp_path / "alone").read_bytes()


def test_images_come_where_the_teacher_is(tmp_path, dataset):
    seen = []

    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, device="meta"))

    class Source:
        def __init__(self):
            self.teacher = Teacher()

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
    MaskStore.build(tmp_path / "c", dataset, bright)
    assert capsys.readouterr().err == ""


def test_cifar_10s_maps_take_19_point_3_megabytes():
    for batch_size in (32, 64, 100, 128, 512):
        header = Header.new(50_000, (3, 32, 32), 3, batch_size, "0" * 64, {"weights": "0" * 64})
        assert Layout(header).size <= 19.3e6
    assert Layout(Header.new(1, (3, 32, 32), 3, 1, "0" * 64, {"weights": "0" * 64})).size < 1000


# --- a store as an object -------------------------------------------------------------------------------------------------


def test_it_says_what_made_it(tmp_path, dataset, network):
    store = MaskStore.build(tmp_path / "m", dataset, GradientSalience(Pooled(network), 0.3), progress=False)
    made = MaskStore(tmp_path / "m").provenance
    assert made == store.provenance
    assert made["class"] == "sip_plugin.salience.gradient.GradientSalience"
    assert made["mass"] == 0.3
    assert made["target"] == "predicted"
    assert len(made["teacher"]["weights"]) == 64
    assert repr(store) == (
        f"MaskStore({str(tmp_path / 'm')!r}, shape=(53, 3, 7, 5), made by sip_plugin.salience.gradient.GradientSalience)"
    )


class Pooled(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(nn.functional.interpolate(x, (16, 16)))


def test_it_can_be_pickled_and_copied(tmp_path, dataset, x, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = MaskStore.build("m", dataset, bright, progress=False)
    monkeypatch.chdir("/")
    data = pickle.dumps(store)
    assert len(data) < 2000
    for other in (pickle.loads(data), copy.copy(store), copy.deepcopy(store)):
        assert torch.equal(other[:], x > 0.5)
        other.close()
    assert torch.equal(store[:], x > 0.5)
    MaskStore.build(tmp_path / "m", dataset, lambda images: images < 0.5, overwrite=True, progress=False)
    with pytest.raises(ValueError, match="another store by now"):
        pickle.loads(data)
    assert torch.equal(store[:], x > 0.5)  # which still has the file it opened


@pytest.mark.slow
@pytest.mark.parametrize("context", [None, *(set(multiprocessing.get_all_start_methods()) & {"fork", "spawn"})])
def test_workers_of_a_loader_read_it(context, tmp_path, dataset, x):
    store = MaskStore.build(tmp_path / "m", dataset, bright, progress=False)
    workers = {"num_workers": 2, "multiprocessing_context": context} if context else {}
    read = torch.cat(list(DataLoader(store, batch_size=10, **workers)))
    assert torch.equal(read, x > 0.5)


def test_threads_read_it_at_once(tmp_path, dataset, x):
    store, wrong = MaskStore.build(tmp_path / "m", dataset, bright, 4, progress=False), []

    def read(seed):
        for indices in torch.randint(N, (100, 8), generator=torch.Generator().manual_seed(seed)):
            if not torch.equal(store[indices], x[indices] > 0.5):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_a_closed_store_says_so(tmp_path, dataset):
    with MaskStore.build(tmp_path / "m", dataset, bright, progress=False) as store:
        assert store[0].shape == SHAPE
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store[0]


# --- damage ---------------------------------------------------------------------------------------------------------------


def read_all(path):
    with MaskStore(path) as store:
        return store[:]


def test_no_flipped_bit_anywhere_in_the_file_is_read_as_a_map(tmp_path, x):
    path = tmp_path / "m"
    MaskStore.build(path, TensorDataset(x[:9], torch.zeros(9).long()), Bright(), 4, progress=False)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged|not a mask store|cut off|half-built"):
            read_all(path)
    path.write_bytes(whole)
    MaskStore(path).verify()


def test_damage_to_one_map_leaves_those_of_other_blocks_readable(tmp_path):
    x = torch.rand(40, 3, 64, 64)
    path = tmp_path / "m"
    store = MaskStore.build(path, TensorDataset(x, torch.zeros(40).long()), bright, 8, progress=False)
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    path.write_bytes(data)  # also seen through the map of the store that is open
    for reader in (store, MaskStore(path)):
        assert torch.equal(reader[:38], x[:38] > 0.5)
        for read in (lambda reader=reader: reader[39], reader.verify):
            with pytest.raises(ValueError, match=r"damaged: the maps of images \d+ to 39"):
                read()


def test_a_file_of_another_length_is_refused(tmp_path, x):
    path = tmp_path / "m"
    MaskStore.build(path, TensorDataset(x[:9], torch.zeros(9).long()), Bright(), 4, progress=False)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"not a mask store|cut off"):
            MaskStore(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="bytes where its header says"):
        MaskStore(path)


def test_a_file_that_is_cut_off_while_it_is_open_is_an_error(tmp_path, dataset):
    path = tmp_path / "m"
    store = MaskStore.build(path, dataset, bright, progress=False)
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="while it was open"):
        store[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda values: {},
        lambda values: [],
        lambda values: values | {"chunk": 0},
        lambda values: values | {"block": -1},
        lambda values: values | {"length": "53"},
        lambda values: values | {"length": True},
        lambda values: values | {"image_shape": [3, 7]},
        lambda values: values | {"image_shape": 3},
        lambda values: values | {"image_shape": [3, 7, 0]},
        lambda values: values | {"channels": 2},
        lambda values: values | {"dataset": None},
        lambda values: values | {"provenance": "by hand"},
        lambda values: values | {"later": 1},
        lambda values: {name: value for name, value in values.items() if name != "block"},
    ],
)
def test_a_header_that_says_what_no_store_says_is_refused(change, tmp_path, dataset):
    path = tmp_path / "m"
    MaskStore.build(path, dataset, bright, progress=False).close()
    whole = path.read_bytes()
    magic, length, _ = struct.unpack("<8sII", whole[:16])
    text = json.dumps(change(json.loads(whole[16 : 16 + length]))).encode()
    path.write_bytes(struct.pack("<8sII", magic, len(text), zlib.crc32(text)) + text + whole[16 + length :])
    with pytest.raises(StoreError, match=r"The header of .*m is not one of this version"):
        MaskStore(path)
    with pytest.raises(FileExistsError, match="not one of this version"):
        MaskStore.build(path, dataset, bright, progress=False)


@pytest.mark.parametrize("name", ["", ".", "folder"])
def test_a_folder_is_no_path_of_a_store(name, tmp_path, dataset, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for call in (lambda: MaskStore(name), lambda: MaskStore.build(name, dataset, bright, overwrite=True)):
        with pytest.raises(IsADirectoryError, match="A store is one file, and this is a folder"):
            call()


def test_a_device_that_is_not_there_is_a_value_error(tmp_path, dataset):
    for device in ("cuda:99", "mps:7", "no such device"):
        with pytest.raises(ValueError, match=f"The device '{device}' cannot be used here"):
            MaskStore.build(tmp_path / "m", dataset, bright, device=device)
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(tmp_path):
    for content in (b"", b"PK\x03\x04", b"\x80\x02}q\x00.", io.BytesIO(b"SIPMAPS2" + b"\0" * 100).getvalue()):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ValueError, match="not a mask store"):
            MaskStore(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        MaskStore(tmp_path / "none")


# --- whose maps they are --------------------------------------------------------------------------------------------------


def test_another_data_set_is_refused(tmp_path, dataset, x, y):
    store = MaskStore.build(tmp_path / "m", dataset, bright, progress=False)
    store.check(dataset)
    one_changed = x.clone()
    one_changed[0, 0, 0, 0] = 1 - one_changed[0, 0, 0, 0]
    for other, says in {
        TensorDataset(x[:-1], y[:-1]): "53 images, the data set has 52",
        TensorDataset(x[..., :4], y): r"\(3, 7, 5\), the data set's are \(3, 7, 4\)",
        TensorDataset(x.flip(0), y): "another data set",
        TensorDataset(x.flip(-1), y): "another data set",
        TensorDataset(one_changed, y): "another data set",
    }.items():
        with pytest.raises(ValueError, match=says):
            store.check(other)


def by_labels(images, labels):
    return images > labels[:, None, None, None] / 4


def test_other_labels_are_another_data_set_where_maps_were_made_with_labels(tmp_path, dataset, x, y):
    with_labels = MaskStore.build(tmp_path / "a", dataset, by_labels, progress=False)
    without = MaskStore.build(tmp_path / "b", dataset, bright, progress=False)
    relabelled = TensorDataset(x, 3 - y)
    without.check(relabelled, every=True)
    with pytest.raises(ValueError, match=r"another data set.*the same labels"):
        with_labels.check(relabelled)
    with pytest.raises(FileExistsError, match="dataset: "):
        MaskStore.build(tmp_path / "a", relabelled, by_labels, progress=False)
    one_other = y.clone()
    one_other[11] += 1  # not in the sample
    with_labels.check(TensorDataset(x, one_other))
    with pytest.raises(ValueError, match=r"1 of the data set's 53 images \(or its label\).*: 11\."):
        with_labels.check(TensorDataset(x, one_other), every=True)


def test_maps_are_only_given_to_the_labels_that_they_were_made_of(tmp_path, dataset, x, y):
    store = MaskStore.build(tmp_path / "m", dataset, by_labels, progress=False)
    for labels in (y[[3, 9]], y[[3, 9]].tolist(), list(y[[3, 9]].numpy())):
        assert torch.equal(store.maps_of([3, 9], [x[3], x[9]], labels), store[[3, 9]])
    with pytest.raises(ValueError, match=r"Image 9 \(or its label\) is not the one"):
        store.maps_of([3, 9], [x[3], x[9]], [y[3], y[9] + 1])
    with pytest.raises(TypeError, match="made with labels"):
        store.maps_of([3], [x[3]])
    with pytest.raises(TypeError, match=r"class indices, that of item 3 is 'cat'"):
        store.maps_of([3], [x[3]], ["cat"])


def test_the_labels_of_a_gradients_true_class_are_part_of_the_data_set(tmp_path, network, digits):
    images, labels = digits[0][:40], digits[1][:40]
    source = GradientSalience(network, target="true")
    MaskStore.build(tmp_path / "m", TensorDataset(images, labels), source, 16, progress=False)
    with pytest.raises(FileExistsError, match="dataset: "):
        MaskStore.build(tmp_path / "m", TensorDataset(images, (labels + 1) % 10), source, 16, progress=False)


def test_maps_are_only_given_to_the_images_that_they_were_made_of(tmp_path, dataset, x):
    store = MaskStore.build(tmp_path / "m", dataset, bright, progress=False)
    assert torch.equal(store.maps_of([3, 9], [x[3], x[9]]), x[[3, 9]] > 0.5)
    assert torch.equal(store.maps_of([3], [x[3].mul(255).round().to(torch.uint8)]), x[[3]] > 0.5)
    with pytest.raises(ValueError, match="Image 9 is not the one"):
        store.maps_of([3, 9], [x[3], x[9, :, :, :4]])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0)).tolist()
    refused = 0
    for here, there in enumerate(order):
        try:
            store.maps_of([here], [x[there]])
        except ValueError:
            refused += 1
    assert refused >= N - 3  # eight bits each


def test_a_data_set_that_augments_is_refused(tmp_path, x):
    class Flips(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, index):
            return (x[index].flip(-1) if torch.rand(()) < 0.5 else x[index]), 0

    with pytest.raises(ValueError, match=r"another image each time.*SalientDataset"):
        MaskStore.build(tmp_path / "m", Flips(), bright, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("items", "kind", "says"),
    [
        ([], ValueError, "empty"),
        ([torch.rand(3, 4, 4)] * 3, TypeError, r"\(image, label\) pairs"),
        ([(torch.rand(3, 4, 4), 0, 1)] * 3, TypeError, "3 values"),
        ([(torch.rand(4, 4), 0)] * 3, ValueError, r"\(C, H, W\)"),
        ([(torch.rand(3, 4, 4) * 255, 0)] * 3, ValueError, r"\[0, 1\]"),
        ([(torch.rand(3, 4, 4) - 1, 0)] * 3, ValueError, r"\[0, 1\]"),
        ([(torch.ones(3, 4, 4, dtype=torch.int64), 0)] * 3, TypeError, "uint8 or floating point"),
        ([(np.ones((4, 4, 3)), 0)] * 3, TypeError, "tensor .* or a PIL image"),
        ([(torch.rand(3, 4, 4), 0), (torch.rand(3, 4, 5), 0)], ValueError, "one shape"),
        ([(torch.full((3, 4, 4), 0.5), "cat")] * 3, TypeError, "class indices"),
        ([(torch.full((3, 4, 4), 0.5), 0.5)] * 3, TypeError, "class indices"),
        (iter([(torch.rand(3, 4, 4), 0)]), TypeError, "map-style"),
    ],
)
def test_a_bad_data_set_is_a_clear_error(items, kind, says, tmp_path):
    with pytest.raises(kind, match=says):
        MaskStore.build(tmp_path / "m", items, bright, progress=False)
    assert not list(tmp_path.iterdir())


def test_an_odd_item_between_those_that_are_looked_at_first_is_found_too(tmp_path, x):
    for odd, says in {torch.rand(3, 9, 5): "item 77", torch.full(SHAPE, 1.5): r"72 to 79.*\[0, 1\]"}.items():
        items = [(image, 0) for image in torch.cat([x, x])]
        items[77] = odd, 0
        with pytest.raises(ValueError, match=says):
            MaskStore.build(tmp_path / "m", items, bright, 8, progress=False)
        assert not (tmp_path / "m").exists()
        (tmp_path / "m.partial").unlink()


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        (lambda images: images, ValueError, "soft"),
        (lambda images: images > 0.5 if images.mean() > 2 else (images > 0.5)[:, :2], ValueError, "broadcastable"),
        (lambda images: None, TypeError, "NoneType"),
        (lambda images: torch.full_like(images, float("nan")), ValueError, "NaN"),
        (lambda images: (images > 0.5)[0], ValueError, "ambiguous"),
        (None, TypeError, "mask_fn must be"),
        ("maps", TypeError, "mask_fn must be"),
        (torch.ones(53, 3, 7, 5), ValueError, "give them to SalientDataset"),
    ],
)
def test_a_bad_map_is_a_clear_error_and_leaves_nothing(source, kind, says, tmp_path, dataset):
    with pytest.raises(kind, match=says):
        MaskStore.build(tmp_path / "m", dataset, source, 8, progress=False)
    assert not list(tmp_path.iterdir())


def test_maps_with_channels_after_maps_without_are_a_clear_error(tmp_path, dataset):
    def source(images):
        return images > 0.5 if len(images) < 8 else (images > 0.5)[:, :1]

    with pytest.raises(ValueError, match="one for all"):
        MaskStore.build(tmp_path / "m", dataset, source, 8, progress=False)


@pytest.mark.parametrize(("size", "kind"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_a_bad_batch_size_is_refused(size, kind, tmp_path, dataset):
    with pytest.raises(kind, match="batch_size"):
        MaskStore.build(tmp_path / "m", dataset, bright, size)
