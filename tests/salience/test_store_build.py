"""Building a mask store: killed anywhere, stopped by anything, by one process or several, it is whole or not there."""

import contextlib
import datetime
import errno
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from filelock import FileLock
from torch import nn
from torch.utils.data import TensorDataset

from sip_plugin.salience import GradientSalience, MaskStore, store
from sip_plugin.salience.store import store_info
from tests.conftest import small_network

resource = pytest.importorskip("resource", reason="these tests fork processes, to kill them; not on Windows")
N, BATCH = 37, 4
RECORD = 96 + 8
pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="these tests fork processes, to kill them"
)


class Bright:
    """Marks what is brighter than ``above``; counts the images that it was asked for."""

    def __init__(self, above=0.5, stop_after=None, pause=0):
        self.above = above
        self._asked, self._left, self._pause = [], stop_after, pause

    def __call__(self, images, labels):
        if self._left is not None and len(self._asked) >= self._left:
            raise RuntimeError("no more")
        time.sleep(self._pause)
        self._asked.append(labels.tolist())
        return images > self.above

    @property
    def asked(self):
        return sorted(itertools.chain(*self._asked))


@pytest.fixture
def x():
    return torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dataset(x):
    return TensorDataset(x, torch.arange(N))


@pytest.fixture
def whole(tmp_path_factory, dataset):
    """The bytes of a store that nobody disturbed."""
    return content(build(tmp_path_factory.mktemp("whole") / "m", dataset).path)


def build(path, dataset, mask_fn=None, batch_size=BATCH, **options):
    return MaskStore.build(path, dataset, mask_fn or Bright(), batch_size, progress=False, **options)


def content(path):
    return (path / "maps.npy").read_bytes(), (path / "info.json").read_bytes()


def stop(path, dataset, after):
    with pytest.raises(RuntimeError, match="no more"):
        build(path, dataset, Bright(stop_after=after))


def forked(work, *arguments):
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


# --- killed and resumed ---------------------------------------------------------------------------------------------------


def die_at(path, dataset, call):
    """Build anew, and be gone at the given use of a file of the store."""
    uses, calls = ("open", "os.mkdir", "os.remove", "os.rename"), itertools.count()

    def hook(event, arguments):
        if event in uses and str(path) in str(arguments[0]) and next(calls) == call:
            os._exit(9)

    sys.addaudithook(hook)
    build(path, dataset, overwrite=True)
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("over_another", [False, True])
def test_killed_at_any_use_of_a_file_it_is_whole_or_unfinished_and_can_be_resumed(over_another, tmp_path, x):
    dataset = TensorDataset(x[:9], torch.arange(9))
    whole = content(build(tmp_path / "whole", dataset).path)
    for call in itertools.count():
        path = tmp_path / str(call)
        if over_another:
            before = build(path, dataset, Bright(0.9))[:]
        process = forked(die_at, path, dataset, call)
        process.join()
        with contextlib.suppress(FileNotFoundError):
            try:
                maps = MaskStore(path)[:]
            except ValueError as error:
                assert "unfinished" in str(error)  # noqa: PT017
            else:
                assert torch.equal(maps, x[:9] > 0.5) or (over_another and torch.equal(maps, before))
        build(path, dataset, overwrite=over_another)
        assert content(path) == whole
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
    assert call > 10


def slow_build(path, dataset, workers):
    os.setpgrp()  # by which the test ends workers that are left
    build(path, dataset, Bright(pause=0.004), num_workers=workers)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_minus_9_again_and_again(workers, tmp_path, dataset, whole):
    path, groups = tmp_path / "m", []
    for attempt in range(10):
        process = forked(slow_build, path, dataset, workers)
        groups.append(process.pid)
        time.sleep(0.012 * attempt + 0.1 * workers)
        process.kill()
        process.join()
    build(path, dataset)  # at once: what is left of its workers has no lock
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    assert content(path) == whole


def test_what_is_done_is_not_done_again(tmp_path, dataset, whole):
    path = tmp_path / "m"
    for after in (1, 2, 0, 3):
        stop(path, dataset, after)
        with pytest.raises(ValueError, match="unfinished"):
            MaskStore(path)
    last = Bright()
    build(path, dataset, last)
    assert last.asked == list(range(6 * BATCH, N))  # but for the six that the others did
    assert content(path) == whole


def test_a_resumed_build_may_take_other_batches(tmp_path, dataset, whole):
    stop(tmp_path / "m", dataset, 3)
    last = Bright()
    build(tmp_path / "m", dataset, last, batch_size=3)
    assert max(map(len, last._asked)) == 3
    assert last.asked == list(range(3 * BATCH, N))
    assert content(tmp_path / "m") == whole


def test_damage_to_what_was_done_is_mended(tmp_path, dataset, whole):
    path = tmp_path / "m"
    stop(path, dataset, 5)
    data = bytearray((path / "maps.npy").read_bytes())
    assert len(data) == len(whole[0])
    data[-(N - 6) * RECORD] ^= 1  # in the map of image 6
    (path / "maps.npy").write_bytes(data)
    last = Bright()
    build(path, dataset, last)
    assert last.asked == [*range(BATCH, 2 * BATCH), *range(5 * BATCH, N)]
    assert content(path) == whole


def test_an_unfinished_store_that_lost_its_maps_is_resumed_and_one_that_was_cut_off_refused(tmp_path, dataset, whole):
    file = tmp_path / "m" / "maps.npy"
    stop(file.parent, dataset, 5)
    for length in (0, 5, 100, 1000):
        os.truncate(file, length)
        with pytest.raises((ValueError, EOFError)):
            build(file.parent, dataset)
    file.unlink()
    build(file.parent, dataset)
    assert content(file.parent) == whole


def changed(dataset, *items, label=False):
    """The data set, some items of which are others: the images, or the labels alone."""
    x, y = (tensor.clone() for tensor in dataset.tensors)
    for item in items:
        if label:
            y[item] += 1
        else:
            x[item] = 1 - x[item]
    return TensorDataset(x, y)


@pytest.mark.parametrize("label", [False, True])
def test_maps_of_images_that_were_changed_behind_the_fingerprint_are_computed_again(label, tmp_path, dataset):
    path, unsampled = tmp_path / "m", 11  # of 37 images, 32 are in the fingerprint
    other = changed(dataset, unsampled, label=label)
    assert store_info(other, Bright()) == store_info(dataset, Bright())
    stop(path, dataset, 5)
    again = Bright()
    build(path, other, again)
    assert again.asked == sorted(other.tensors[1][[*range(8, 12), *range(20, N)]].tolist())
    MaskStore(path).check(other, every=True)


def test_what_was_changed_where_no_map_is_yet_does_no_harm(tmp_path, dataset):
    other = changed(dataset, 25)
    stop(tmp_path / "m", dataset, 5)
    assert torch.equal(build(tmp_path / "m", other)[:], other.tensors[0] > 0.5)


def test_a_check_of_every_image_finds_two_that_changed_places(tmp_path, dataset, x):
    store = build(tmp_path / "m", dataset)
    order = list(range(N))
    order[11], order[25] = 25, 11
    swapped = TensorDataset(x[order], torch.arange(N))
    store.check(swapped)  # not in the sample
    for workers in (0, 1):
        store.check(dataset, every=True, num_workers=workers)
        with pytest.raises(ValueError, match=r"Image 11 "):
            store.check(swapped, every=True, num_workers=workers)


@pytest.mark.parametrize("after", [3, None])
def test_another_store_is_refused_and_kept_unless_told_otherwise(after, tmp_path, dataset, x):
    path = tmp_path / "m"
    stop(path, dataset, after) if after else build(path, dataset)
    before = content(path)
    for other, mask_fn, says in (
        (dataset, Bright(above=0.25), r"provenance: .*0\.5} against .*0\.25}"),
        (TensorDataset(1 - x, torch.arange(N)), Bright(), "dataset: "),
        (TensorDataset(x[:-1], torch.arange(N - 1)), Bright(), "length: 37 against 36"),
        (TensorDataset(x[..., :8], torch.arange(N)), Bright(), r"image_shape: \[3, 16, 16\] against \[3, 16, 8\]"),
        (dataset, lambda images: images > 0.5, "provenance: .*lambda"),
    ):
        with pytest.raises(FileExistsError, match=rf"other maps or images.*overwrite=True.*{says}"):
            build(path, other, mask_fn)
    assert content(path) == before
    assert torch.equal(build(path, dataset, Bright(above=0.25), overwrite=True)[:], x > 0.25)


def test_a_store_by_another_teacher_is_refused(tmp_path, dataset):
    teacher = small_network()
    path = tmp_path / "m"
    store = build(path, dataset, GradientSalience(teacher), 16)
    assert build(path, dataset, GradientSalience(small_network()), 16).provenance == store.provenance
    with torch.no_grad():
        teacher[0].bias[0] += 1e-6
    with pytest.raises(FileExistsError, match=r"provenance: .*model_hash.* against .*"):
        build(path, dataset, GradientSalience(teacher), 16)


def test_a_finished_store_is_opened_and_nothing_is_computed(tmp_path, dataset):
    path = build(tmp_path / "m", dataset).path
    before = [file.stat() for file in sorted(path.iterdir())]
    again = Bright(stop_after=0)
    assert len(build(path, dataset, again, batch_size=9)) == N
    assert [file.stat() for file in sorted(path.iterdir())] == before
    fresh = Bright()
    build(path, dataset, fresh, overwrite=True)
    assert fresh.asked == list(range(N))


def test_a_foreign_folder_or_file_is_left_alone(tmp_path, dataset):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "maps.npy").write_bytes(b"not yours")
    (tmp_path / "file").write_bytes(b"not yours")
    for overwrite in (False, True):
        with pytest.raises(FileNotFoundError, match=r"info\.json"):
            build(tmp_path / "m", dataset, overwrite=overwrite)
        with pytest.raises(ValueError, match="is a file"):
            build(tmp_path / "file", dataset, overwrite=overwrite)
    assert (tmp_path / "m" / "maps.npy").read_bytes() == (tmp_path / "file").read_bytes() == b"not yours"


# --- what the machine does not allow --------------------------------------------------------------------------------------


def told(work, *arguments):
    """What a forked process returned or raised."""
    ours, theirs = multiprocessing.Pipe()

    def run():
        try:
            theirs.send(work(*arguments))
        except BaseException as error:
            theirs.send(error)
        os._exit(0)

    process = forked(run)
    assert ours.poll(30)
    answer = ours.recv()
    process.join()
    return answer


def test_two_processes_do_not_build_one_store(tmp_path, dataset, x):
    stop(tmp_path / "m", dataset, 3)
    with FileLock(tmp_path / "m" / ".lock"):
        error = told(build, tmp_path / "m", dataset)
    assert isinstance(error, TimeoutError)
    assert ".lock" in str(error)
    assert torch.equal(build(tmp_path / "m", dataset)[:], x > 0.5)


def test_the_one_that_comes_second_finds_what_the_first_has_finished(tmp_path, dataset, monkeypatch):
    path, mask_fn = tmp_path / "m", Bright()
    stop(path, dataset, 3)

    class Late(FileLock):
        def acquire(self):
            monkeypatch.undo()
            build(path, dataset)  # the other one finished just before
            return super().acquire()

    monkeypatch.setattr(store, "FileLock", Late)
    build(path, dataset, mask_fn)
    assert not mask_fn.asked


def test_a_folder_that_is_not_there_is_an_error(tmp_path, dataset):
    with pytest.raises(FileNotFoundError, match="none"):
        build(tmp_path / "none" / "m", dataset)


def as_nobody(path, dataset):
    if os.geteuid() == 0:  # who may write everywhere
        os.setuid(65534)
    return build(path, dataset)


def test_a_read_only_folder_is_an_error(dataset):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        assert isinstance(told(as_nobody, Path(folder) / "m", dataset), PermissionError)
        assert not list(Path(folder).iterdir())


def small_files_only(path, dataset):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    mask_fn = Bright()
    with pytest.raises(OSError, match="large") as caught:
        build(path, dataset, mask_fn)
    return caught.value.errno, mask_fn.asked


def test_no_room_for_the_file_is_said_after_one_batch(tmp_path, dataset, whole):
    assert told(small_files_only, tmp_path / "m", dataset) == (errno.EFBIG, list(range(BATCH)))
    build(tmp_path / "m", dataset)
    assert content(tmp_path / "m") == whole


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, and a way to make it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(disk)], capture_output=True, text=True)

    try:
        mounted = mount("-o", "size=64k")
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    yield disk, lambda: mount("-o", "remount,size=10m")
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def without_fallocate(monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)


@pytest.mark.parametrize("allocate", [lambda monkeypatch: None, without_fallocate])
def test_a_full_disk_is_a_plain_error_and_the_build_goes_on_later(allocate, small_disk, monkeypatch):
    disk, enlarge = small_disk
    data = TensorDataset(torch.rand(2000, 3, 16, 16), torch.arange(2000))
    first, last = Bright(), Bright()
    allocate(monkeypatch)
    with pytest.raises(OSError, match="No space left") as caught:
        build(disk / "m", data, first, 64)
    assert caught.value.errno == errno.ENOSPC
    if hasattr(os, "posix_fallocate"):
        assert len(first.asked) == 64
    with pytest.raises(ValueError, match="unfinished"):
        MaskStore(disk / "m")
    with pytest.raises(OSError, match="No space left"):
        build(disk / "m", data, Bright(), 64)
    enlarge()
    assert torch.equal(build(disk / "m", data, last, 64)[:], data.tensors[0] > 0.5)


def test_where_room_cannot_be_set_aside_the_file_is_made_all_the_same(tmp_path, dataset, whole, monkeypatch):
    without_fallocate(monkeypatch)
    assert content(build(tmp_path / "b", dataset).path) == whole


# --- several processes ----------------------------------------------------------------------------------------------------


def process(rank, size, folder, dataset, work, connection):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous-{work.__name__}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=30),  # a process that waits in vain is an error, not a test that hangs
    )
    try:
        connection.send(work(rank, folder, dataset))
    except BaseException as error:
        connection.send(error)
    finally:
        os._exit(0)


def together(size, folder, dataset, work):
    """What each of ``size`` processes got, or raised."""
    pipes = [multiprocessing.Pipe() for _ in range(size)]
    processes = [forked(process, rank, size, folder, dataset, work, pipes[rank][1]) for rank in range(size)]
    try:
        got = []
        for ours, theirs in pipes:
            theirs.close()
            try:
                got.append(ours.recv() if ours.poll(60) else "hangs")
            except EOFError:
                got.append("gone")
        return got
    finally:
        for one in processes:
            one.kill()
            one.join()


def teachers_maps(rank, folder, dataset):
    torch.manual_seed(rank)
    network = small_network()
    rows = []
    network.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    store = build(folder / "m", dataset, GradientSalience(network))
    return rows, store[:].sum().item()


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_compute_a_share_each_and_the_very_file_of_one(size, tmp_path, dataset):
    got = together(size, tmp_path, dataset, teachers_maps)
    alone = build(tmp_path / "alone", dataset, GradientSalience(small_network()))
    assert content(tmp_path / "m") == content(tmp_path / "alone")
    assert sum(sum(rows) for rows, _ in got) == N
    assert {len(rows) for rows, _ in got} <= {10 // size, -(-10 // size)}
    assert {salient for _, salient in got} == {alone[:].sum().item()}


def resume(rank, folder, dataset):
    return len(build(folder / "m", dataset))


def test_several_processes_resume(tmp_path, dataset, whole):
    stop(tmp_path / "m", dataset, 5)
    assert together(2, tmp_path, dataset, resume) == [N, N]
    assert content(tmp_path / "m") == whole


def one_breaks(rank, folder, dataset):
    build(folder / "m", dataset, Bright(stop_after=2 if rank == 1 else None))


def test_when_one_process_fails_all_say_so_at_once_and_the_rest_is_kept(tmp_path, dataset, whole):
    start = time.monotonic()
    zero, one = together(2, tmp_path, dataset, one_breaks)
    assert time.monotonic() - start < 20
    assert str(one) == "no more"
    assert "Process 1 of 2 failed with RuntimeError: no more" in str(zero)
    last = Bright()
    build(tmp_path / "m", dataset, last)
    assert 0 < len(last.asked) < N - 3 * BATCH
    assert content(tmp_path / "m") == whole


def one_is_killed(rank, folder, dataset):
    class Dies(Bright):
        def __call__(self, images, labels):
            if len(self._asked) == 2 and rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(images, labels)

    Dies.__qualname__, Dies.__module__ = Bright.__qualname__, Bright.__module__
    build(folder / "m", dataset, Dies())


def test_when_one_process_is_killed_the_others_do_not_wait_for_ever(tmp_path, dataset, whole):
    zero, one = together(2, tmp_path, dataset, one_is_killed)
    assert zero == "gone"
    assert isinstance(one, Exception)
    build(tmp_path / "m", dataset)
    assert content(tmp_path / "m") == whole


def want_different_maps(rank, folder, dataset):
    build(folder / "m", dataset, Bright(above=0.25 * (1 + rank)))


def want_different_batches(rank, folder, dataset):
    build(folder / "m", dataset, batch_size=4 + rank)


@pytest.mark.parametrize(
    ("work", "says"), [(want_different_maps, "provenance"), (want_different_batches, "batch_size")]
)
def test_processes_that_do_not_build_the_same_are_refused(work, says, tmp_path, dataset):
    for error in together(2, tmp_path, dataset, work):
        assert isinstance(error, ValueError)
        assert f"differ in {says}" in str(error)
    assert not list(tmp_path.glob("m*"))


def sees_another_folder(rank, folder, dataset):
    (folder / str(rank)).mkdir()
    build(folder / str(rank) / "m", dataset)


def test_processes_that_do_not_write_to_one_file_system_are_told(tmp_path, dataset):
    for error in together(2, tmp_path, dataset, sees_another_folder):
        assert str(tmp_path / "1" / "m" / "maps.npy") in str(error)


def test_a_ready_map_for_a_batch_is_not_one_for_the_data_set(tmp_path, dataset):
    with pytest.raises(ValueError, match="must hold for every image"):
        MaskStore.build(tmp_path / "m", dataset, torch.zeros(8, 3, 7, 5), batch_size=8, progress=False)


def test_what_the_layers_of_a_teacher_hold_tells_stores_apart(tmp_path, dataset):
    class Normalise(nn.Module):
        def __init__(self, mean, function):
            super().__init__()
            self.mean, self.function = mean, function

        def forward(self, x):
            return self.function(x - torch.as_tensor(self.mean)).flatten(1)

    def source(mean, function=torch.tanh):
        return GradientSalience(nn.Sequential(Normalise(mean, function), nn.Identity()))

    MaskStore.build(tmp_path / "m", dataset, source(0.5), progress=False)
    MaskStore.build(tmp_path / "m", dataset, source(0.5), progress=False)
    for other in (source(0.1), source([0.5]), source(torch.tensor(0.5)), source(0.5, torch.sigmoid)):
        with pytest.raises(FileExistsError, match="other maps"):
            MaskStore.build(tmp_path / "m", dataset, other, progress=False)
