"""Building a mask store: killed anywhere, stopped by anything, by one process or several, it is whole or not there."""

import contextlib
import datetime
import errno
import itertools
import multiprocessing
import os
import resource
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import TensorDataset

from sip_plugin.salience import GradientSalience, MaskStore, store_file, store_partial
from sip_plugin.salience.store_build import wanted_of
from sip_plugin.salience.store_partial import Partial
from tests.conftest import small_network

N, BATCH = 37, 4
pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="these tests fork processes, to kill them"
)


class Bright:
    """Marks what is brighter than ``above``; counts the images that it was asked for."""

    def __init__(self, above=0.5, stop_after=None):
        self.above = above
        self._asked, self._left = [], stop_after

    def __call__(self, images, labels):
        if self._left is not None and len(self._asked) >= self._left:
            raise RuntimeError("no more")
        self._asked.append(labels.tolist())
        return images > self.above

    def provenance(self):
        return {"above": self.above}

    @property
    def asked(self):
        return sorted(itertools.chain(*self._asked))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Two records a block, so that a chunk is one small batch."""
    monkeypatch.setattr(store_file, "_BLOCK_BYTES", 200)


@pytest.fixture
def x():
    return torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dataset(x):
    return TensorDataset(x, torch.arange(N))


@pytest.fixture
def whole(tmp_path_factory, dataset):
    """The bytes of a store that nobody disturbed."""
    path = tmp_path_factory.mktemp("whole") / "m"
    MaskStore.build(path, dataset, Bright(), BATCH, progress=False)
    return path.read_bytes()


def build(path, dataset, mask_fn=None, batch_size=BATCH, **options):
    return MaskStore.build(path, dataset, mask_fn or Bright(), batch_size, progress=False, **options)


def forked(work, *arguments):
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


# --- killed ---------------------------------------------------------------------------------------------------------------


def die_at(path, dataset, call, torn):
    """Build, and be gone at the given call to the operating system; a torn write does half of its work first."""
    calls = itertools.count()

    def dies(name, function):
        def replacement(*arguments):
            if next(calls) == call:
                if torn and name == "write":
                    function(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                elif torn:
                    function(*arguments)
                os._exit(9)
            return function(*arguments)

        return replacement

    for name in ("open", "write", "ftruncate", "fsync", "posix_fallocate", "lseek", "close", "replace"):
        if hasattr(os, name):
            setattr(os, name, dies(name, getattr(os, name)))
    build(path, dataset)
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True])
def test_killed_at_any_call_to_the_system_it_is_whole_or_not_there_and_can_be_resumed(torn, tmp_path, x):
    dataset = TensorDataset(x[:9], torch.arange(9))
    whole = build(tmp_path / "whole", dataset).path.read_bytes()
    for call in itertools.count():
        path = tmp_path / str(call)
        process = forked(die_at, path, dataset, call, torn)
        process.join()
        if path.exists():
            assert path.read_bytes() == whole
        partial = tmp_path / f"{call}.partial"
        if partial.exists():
            half = tmp_path / "half"
            half.write_bytes(partial.read_bytes())
            if half.read_bytes() != whole:
                with pytest.raises(ValueError, match=r"half-built|not a mask store|cut off|damaged"):
                    MaskStore(half)[:]
        build(path, dataset)
        assert path.read_bytes() == whole
        assert not partial.exists()
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
    assert call > 20


def slow_build(path, dataset, workers):
    os.setpgrp()  # by which the test ends workers that are left

    class Slow(Bright):
        def __call__(self, images, labels):
            time.sleep(0.004)
            return super().__call__(images, labels)

    Slow.__qualname__, Slow.__module__ = Bright.__qualname__, Bright.__module__
    build(path, dataset, Slow(), num_workers=workers)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_minus_9_again_and_again(workers, tmp_path, dataset, whole):
    path, groups = tmp_path / "m", []
    for attempt in range(12):
        process = forked(slow_build, path, dataset, workers)
        time.sleep(0.012 * attempt + 0.1 * workers)
        process.kill()
        process.join()
        groups.append(process.pid)
        if path.exists():
            break
    build(path, dataset)  # at once: what is left of its workers has no lock
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


# --- resumed --------------------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(tmp_path, dataset, whole):
    path = tmp_path / "m"
    for stop in (1, 2, 0, 3):
        first = Bright(stop_after=stop)
        with pytest.raises(RuntimeError, match="no more"):
            build(path, dataset, first)
        assert not path.exists()
    last = Bright()
    build(path, dataset, last)
    assert last.asked == list(range(6 * BATCH, N))  # but for the six that the others did
    assert path.read_bytes() == whole


def test_a_resumed_build_may_take_other_batches(tmp_path, dataset, x):
    path = tmp_path / "m"
    with pytest.raises(RuntimeError):
        build(path, dataset, Bright(stop_after=3))
    last = Bright()
    store = build(path, dataset, last, batch_size=3)
    assert max(map(len, last._asked)) == 3
    assert last.asked == list(range(3 * BATCH, N))
    assert torch.equal(store[:], x > 0.5)


def test_damage_to_what_was_done_is_mended(tmp_path, dataset, whole):
    path, partial = tmp_path / "m", tmp_path / "m.partial"
    with pytest.raises(RuntimeError):
        build(path, dataset, Bright(stop_after=5))
    data = bytearray(partial.read_bytes())
    assert len(data) == len(whole)
    data[len(whole) - (N - 6) * 97] ^= 1  # in the record of image 6
    partial.write_bytes(data)
    last = Bright()
    build(path, dataset, last)
    assert last.asked == [*range(BATCH, 2 * BATCH), *range(5 * BATCH, N)]
    assert path.read_bytes() == whole


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
def test_a_part_whose_images_were_changed_behind_the_fingerprint_is_not_taken_up(label, tmp_path, dataset, x):
    path, unsampled = tmp_path / "m", 11  # of 37 images, 32 are in the fingerprint
    other = changed(dataset, unsampled, label=label)
    assert wanted_of(other, Bright()) == wanted_of(dataset, Bright())
    with pytest.raises(RuntimeError):
        build(path, dataset, Bright(stop_after=5))
    before = (tmp_path / "m.partial").read_bytes()
    with pytest.raises(FileExistsError, match=rf"other images or labels: item {unsampled} .*overwrite=True"):
        build(path, other, Bright(stop_after=0))
    assert (tmp_path / "m.partial").read_bytes() == before
    again = Bright()
    build(path, other, again, overwrite=True, num_workers=0)
    assert again.asked == sorted(other.tensors[1].tolist())
    MaskStore(path).check(other, every=True)


def test_what_was_changed_where_no_map_is_yet_does_no_harm(tmp_path, dataset):
    path, other = tmp_path / "m", changed(dataset, 25)
    assert wanted_of(other, Bright()) == wanted_of(dataset, Bright())
    with pytest.raises(RuntimeError):
        build(path, dataset, Bright(stop_after=5))
    assert torch.equal(build(path, other)[:], other.tensors[0] > 0.5)


def test_a_check_of_every_image_finds_two_that_changed_places(tmp_path, dataset, x):
    store = build(tmp_path / "m", dataset)
    order = list(range(N))
    order[11], order[25] = 25, 11
    swapped = TensorDataset(x[order], torch.arange(N))
    store.check(swapped)  # not in the sample
    assert len(build(tmp_path / "m", swapped)) == N
    for workers in (0, 1):
        store.check(dataset, every=True, num_workers=workers)
        with pytest.raises(ValueError, match=r"2 of the data set's 37 images.*: 11, 25\."):
            store.check(swapped, every=True, num_workers=workers)


def test_several_processes_look_at_the_images_of_what_is_done(tmp_path, dataset):
    with pytest.raises(RuntimeError):
        build(tmp_path / "m", dataset, Bright(stop_after=5))
    zero, one = together(2, tmp_path, changed(dataset, 11), resume)
    assert isinstance(zero, FileExistsError)
    assert "item 11 of the data set" in str(zero)
    assert "Process 0 of 2 failed: FileExistsError" in str(one)
    assert together(2, tmp_path, dataset, resume_of_the_same) == [N, N]


def resume(rank, folder, dataset):
    return len(build(folder / "m", dataset))


def resume_of_the_same(rank, folder, dataset):
    return resume(rank, folder, dataset)


@pytest.mark.parametrize("length", [0, 5, 16, 100, 262, 279, 1000, 2000])
def test_what_is_left_of_a_part_that_was_cut_off_is_resumed(length, tmp_path, dataset, whole):
    path, partial = tmp_path / "m", tmp_path / "m.partial"
    with pytest.raises(RuntimeError):
        build(path, dataset, Bright(stop_after=5))
    partial.write_bytes(partial.read_bytes()[:length])
    build(path, dataset)
    assert path.read_bytes() == whole


def test_a_part_of_another_store_is_not_taken_up(tmp_path, dataset, x):
    path, partial = tmp_path / "m", tmp_path / "m.partial"
    with pytest.raises(RuntimeError):
        build(path, dataset, Bright(stop_after=3))
    before = partial.read_bytes()
    for other, mask_fn, says in (
        (dataset, Bright(above=0.25), r"provenance.above: 0.5 against 0.25"),
        (TensorDataset(1 - x, torch.arange(N)), Bright(), "dataset: "),
        (TensorDataset(x[:-1], torch.arange(N - 1)), Bright(), "length: 37 against 36"),
        (TensorDataset(x[..., :8], torch.arange(N)), Bright(), r"image_shape: \(3, 16, 16\) against \(3, 16, 8\)"),
        (dataset, lambda images: images > 0.5, "provenance.class"),
    ):
        with pytest.raises(FileExistsError, match=rf"m.partial is a part of another store.*{says}.*Delete it"):
            build(path, other, mask_fn)
    assert partial.read_bytes() == before
    store = build(path, dataset, Bright(above=0.25), overwrite=True)
    assert torch.equal(store[:], x > 0.25)


def test_a_part_by_another_teacher_is_not_taken_up(tmp_path, dataset):
    teacher = small_network()
    path = tmp_path / "m"
    store = build(path, dataset, GradientSalience(teacher), 16)
    assert build(path, dataset, GradientSalience(small_network()), 16).provenance == store.provenance
    with torch.no_grad():
        teacher[0].bias[0] += 1e-6
    with pytest.raises(FileExistsError, match=r"provenance.teacher.weights: .* against .*"):
        build(path, dataset, GradientSalience(teacher), 16)


def test_a_foreign_file_is_left_alone(tmp_path, dataset):
    for name in ("m", "m.partial"):
        (tmp_path / name).write_bytes(b"not yours")
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match="in the way"):
                build(tmp_path / "m", dataset, overwrite=overwrite)
            assert (tmp_path / name).read_bytes() == b"not yours"
        (tmp_path / name).unlink()
        assert not list(tmp_path.iterdir())


# --- there already --------------------------------------------------------------------------------------------------------


def test_a_store_that_is_there_is_opened_and_nothing_is_computed(tmp_path, dataset, whole):
    build(tmp_path / "m", dataset)
    before = (tmp_path / "m").stat()
    again = Bright(stop_after=0)
    store = build(tmp_path / "m", dataset, again, batch_size=9)
    assert not again.asked
    assert len(store) == N
    assert (tmp_path / "m").stat() == before


def test_another_store_that_is_there_is_kept_unless_told_otherwise(tmp_path, dataset, x, whole):
    path = tmp_path / "m"
    build(path, dataset)
    with pytest.raises(FileExistsError, match=r"other maps or images \(provenance.above: 0.5 against 0.1\)"):
        build(path, dataset, Bright(above=0.1))
    with pytest.raises(RuntimeError):
        build(path, dataset, Bright(0.1, stop_after=2), overwrite=True)
    assert path.read_bytes() == whole  # until the new one is whole
    last = Bright(0.1)
    assert torch.equal(build(path, dataset, last, overwrite=True)[:], x > 0.1)
    assert len(last.asked) == N - 2 * BATCH


def test_a_damaged_store_that_is_there_is_not_called_whole(tmp_path, dataset, whole):
    path = tmp_path / "m"
    path.write_bytes(whole[:-1])
    with pytest.raises(FileExistsError, match=r"cut off.*overwrite=True"):
        build(path, dataset)
    build(path, dataset, overwrite=True)
    assert path.read_bytes() == whole


# --- what the machine does not allow --------------------------------------------------------------------------------------


def build_and_tell(path, dataset, connection):
    try:
        build(path, dataset)
    except BaseException as error:
        connection.send(error)
    os._exit(0)


def test_two_processes_do_not_build_one_store(tmp_path, dataset, x):
    pytest.importorskip("fcntl")
    partial = Partial(tmp_path / "m")
    for _ in range(2):
        ours, theirs = multiprocessing.Pipe()
        process = forked(build_and_tell, tmp_path / "m", dataset, theirs)
        assert ours.poll(30)
        error = ours.recv()
        process.join()
        assert isinstance(error, BlockingIOError)
        assert "Another process is building this store" in str(error)
        assert "m.partial" in str(error)
        with pytest.raises(BlockingIOError, match="Another process is building this store"):
            build(tmp_path / "m", dataset)  # nor another thread of this one
    partial.close()
    assert torch.equal(build(tmp_path / "m", dataset)[:], x > 0.5)


def test_the_one_that_comes_second_finds_what_the_first_has_finished(tmp_path, dataset, monkeypatch, whole):
    path, mask_fn = tmp_path / "m", Bright()

    class Late(Partial):
        def __init__(self, target):
            path.write_bytes(whole)  # the other one finished just before
            super().__init__(target)

    monkeypatch.setattr("sip_plugin.salience.store_build.Partial", Late)
    build(path, dataset, mask_fn)
    assert not mask_fn.asked
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_a_folder_that_is_not_there_is_said_before_anything_is_computed(tmp_path, dataset):
    (tmp_path / "file").touch()
    for folder, kind in (("none", FileNotFoundError), ("file", NotADirectoryError)):
        mask_fn = Bright(stop_after=0)
        with pytest.raises(kind, match=rf"cannot be written into .*{folder}"):
            build(tmp_path / folder / "m", dataset, mask_fn)


def as_nobody(path, dataset, connection):
    if os.geteuid() == 0:  # who may write everywhere
        os.setuid(65534)
    try:
        build(path, dataset, Bright(stop_after=0))
    except BaseException as error:
        connection.send(error)
    os._exit(0)


def test_a_read_only_folder_is_said_before_anything_is_computed(dataset):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        ours, theirs = multiprocessing.Pipe()
        process = forked(as_nobody, Path(folder) / "m", dataset, theirs)
        assert ours.poll(30)
        error = ours.recv()
        process.join()
        assert isinstance(error, PermissionError)
        assert f"cannot be written into {folder}" in str(error)
        Path(folder).chmod(0o700)
        assert not list(Path(folder).iterdir())


def small_files_only(path, dataset, connection):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    mask_fn = Bright()
    try:
        build(path, dataset, mask_fn)
    except BaseException as error:
        connection.send((error, mask_fn.asked))
    os._exit(0)


def test_no_room_for_the_file_is_said_after_one_batch_and_leaves_nothing(tmp_path, dataset, whole):
    ours, theirs = multiprocessing.Pipe()
    process = forked(small_files_only, tmp_path / "m", dataset, theirs)
    assert ours.poll(30)
    error, asked = ours.recv()
    process.join()
    assert isinstance(error, OSError)
    assert error.errno == errno.EFBIG
    assert f"{len(whole)} bytes were to be written into {tmp_path}" in str(error)
    assert asked == list(range(BATCH))
    assert not list(tmp_path.iterdir())


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


def many(n=2000):
    return TensorDataset(torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(n).long())


def test_a_full_disk_is_said_after_one_batch_and_leaves_nothing(small_disk):
    disk, enlarge = small_disk
    mask_fn = Bright()
    with pytest.raises(
        OSError, match=r"19\d{4} bytes were to be written into .*disk, of which 65536 are free"
    ) as caught:
        build(disk / "m", many(), mask_fn, 64)
    assert caught.value.errno == errno.ENOSPC
    assert len(mask_fn.asked) == 64
    assert not list(disk.iterdir())
    enlarge()
    assert len(build(disk / "m", many(), mask_fn, 64)) == 2000


def test_a_disk_that_others_fill_meanwhile_is_said_and_the_build_goes_on_later(small_disk, monkeypatch):
    disk, enlarge = small_disk
    # As on a file system that cannot set room aside.
    monkeypatch.setattr(Partial, "_allocate", lambda self, size: os.ftruncate(self._file, size))
    with pytest.raises(OSError, match=r"\d+ bytes were to be written into .*disk: No space left") as caught:
        build(disk / "m", many(), batch_size=64)
    assert caught.value.errno == errno.ENOSPC
    assert not (disk / "m").exists()
    enlarge()
    last = Bright()
    store = build(disk / "m", many(), last, 64)
    assert 64 < len(last.asked) < 2000
    assert torch.equal(store[:], many().tensors[0] > 0.5)


def test_where_room_cannot_be_set_aside_the_file_is_made_all_the_same(tmp_path, dataset, whole, monkeypatch):
    def refuses(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuses, raising=False)
    build(tmp_path / "a", dataset)
    monkeypatch.delattr(os, "posix_fallocate")
    build(tmp_path / "b", dataset)
    monkeypatch.setattr(store_partial, "fcntl", None)
    build(tmp_path / "c", dataset)
    for name in "abc":
        assert (tmp_path / name).read_bytes() == whole


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
def test_several_processes_make_a_share_each_and_the_very_file_of_one(size, tmp_path, dataset):
    got = together(size, tmp_path, dataset, teachers_maps)
    alone = build(tmp_path / "alone", dataset, GradientSalience(small_network()))
    assert (tmp_path / "m").read_bytes() == (tmp_path / "alone").read_bytes()
    assert not (tmp_path / "m.partial").exists()
    assert sum(sum(rows) for rows, _ in got) == N
    assert {len(rows) for rows, _ in got} <= {10 // size, -(-10 // size)}
    assert {salient for _, salient in got} == {alone[:].sum().item()}


def one_breaks(rank, folder, dataset):
    build(folder / "m", dataset, Bright(stop_after=2 if rank == 1 else None))


def test_when_one_process_fails_all_say_so_at_once_and_the_rest_is_kept(tmp_path, dataset, whole):
    start = time.monotonic()
    zero, one = together(2, tmp_path, dataset, one_breaks)
    assert time.monotonic() - start < 20
    assert isinstance(one, RuntimeError)
    assert str(one) == "no more"
    assert isinstance(zero, RuntimeError)
    assert str(zero) == "Process 1 of 2 failed: RuntimeError: no more"
    last = Bright()
    build(tmp_path / "m", dataset, last)
    assert 0 < len(last.asked) < N - 3 * BATCH
    assert (tmp_path / "m").read_bytes() == whole


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
    assert (tmp_path / "m").read_bytes() == whole


def want_different_maps(rank, folder, dataset):
    build(folder / "m", dataset, Bright(above=0.25 * (1 + rank)))


def test_processes_that_want_different_maps_are_refused(tmp_path, dataset):
    for error in together(2, tmp_path, dataset, want_different_maps):
        assert isinstance(error, ValueError)
        assert "Process 1 builds another store than process 0: provenance.above: 0.25 against 0.5" in str(error)
    assert not list(tmp_path.glob("m*"))


def one_has_a_bad_batch_size(rank, folder, dataset):
    build(folder / "m", dataset, batch_size=4 if rank == 0 else 0)


def test_a_bad_argument_in_one_process_is_known_to_all_at_once(tmp_path, dataset):
    start = time.monotonic()
    zero, one = together(2, tmp_path, dataset, one_has_a_bad_batch_size)
    assert time.monotonic() - start < 20
    assert isinstance(one, ValueError)
    assert "batch_size must be 1 or more" in str(one)
    assert str(zero) == f"Process 1 of 2 failed: ValueError: {one}"


def find_another_store(rank, folder, dataset):
    build(folder / "m", dataset, Bright(above=0.1))


def find_the_store(rank, folder, dataset):
    return len(build(folder / "m", dataset, Bright(stop_after=0)))


def test_a_store_that_is_there_is_opened_by_all(tmp_path, dataset):
    build(tmp_path / "m", dataset)
    assert together(2, tmp_path, dataset, find_the_store) == [N, N]
    zero, one = together(2, tmp_path, dataset, find_another_store)
    assert isinstance(zero, FileExistsError)
    assert "Process 0 of 2 failed: FileExistsError" in str(one)


def sees_another_folder(rank, folder, dataset):
    (folder / str(rank)).mkdir()
    build(folder / str(rank) / "m", dataset)


def test_processes_that_do_not_see_one_file_system_are_told(tmp_path, dataset):
    zero, one = together(2, tmp_path, dataset, sees_another_folder)
    assert isinstance(one, FileNotFoundError)
    assert "Process 1 of 2 failed: FileNotFoundError" in str(zero)
    assert "one file system" in str(one)
    assert not list((tmp_path / "1").iterdir())


def loses_what_another_wrote(rank, folder, dataset):
    if rank == 1:
        Partial.write = lambda *_: None
    build(folder / "m", dataset)


def test_writes_that_do_not_arrive_are_noticed_at_the_end(tmp_path, dataset, whole):
    for error in together(2, tmp_path, dataset, loses_what_another_wrote):
        assert "5 chunks that were written into" in str(error)
        assert "are missing" in str(error)
    assert not (tmp_path / "m").exists()
    last = Bright()
    build(tmp_path / "m", dataset, last)
    assert len(last.asked) == N // 2 // BATCH * BATCH + 1
    assert (tmp_path / "m").read_bytes() == whole
