"""Checkpoints: what is restored is what was saved, or it is said and the step before is taken."""

import collections
import errno
import itertools
import os
import shutil
import time
from functools import partial

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from core.errors import UserError, as_disk_error
from core.file_sums import write_sums
from model.digests import named_leaves, read_digests, start_digests
from model.parallel.sharding import make_mesh, state_shardings
from train.checkpoints import retention
from train.checkpoints.checkpoints import Checkpoints
from train.guard import make_guard
from train.state import TrainState


def make_state(step, mesh, width=8, num_tokens=2048):
    """A small state, other in every number from that of another step, placed on the mesh."""
    rng = np.random.default_rng(step)
    params = {"embed_VD": rng.normal(size=(num_tokens, width)).astype(np.float32),
              "blocks": {"w_DF": rng.normal(size=(2, width, 16)).astype(np.float32)}}
    moments = jax.tree.map(lambda leaf: (leaf * 0.1).astype(jnp.bfloat16), params)
    guard = jax.tree.map(lambda leaf: leaf + step, make_guard(8))
    state = TrainState(jnp.int32(step), params, ({"count": jnp.int32(step), "mu": moments},),
                       jax.random.key(step), guard)
    return jax.device_put(state, state_shardings(state, params, mesh))


def make_rows(num_read=0):
    """A loader that counts, and has given so many rows."""
    rows = iter(grain.MapDataset.range(1000).to_iter_dataset(grain.ReadOptions(num_threads=1)))
    for _ in range(num_read):
        next(rows)
    return rows


def bits(state):
    state = state.replace(key=jax.random.key_data(state.key))
    return {name: np.asarray(leaf).tobytes() for name, leaf in named_leaves(state).items()}


def save_steps(folder, mesh, *steps, **options):
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        assert checkpoints.save(make_state(step, mesh), make_rows(step), required=True)
    return checkpoints


@pytest.fixture(scope="module")
def one_device():
    return make_mesh({"data": 1}, jax.devices()[:1])


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, one_device):
    """A folder with steps 4 and 8."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save_steps(folder, one_device, 4, 8).close()
    return folder


def test_an_error_waits_for_the_save_in_progress(tmp_path, one_device, monkeypatch):
    write = Checkpoints._write_sums

    def write_late(checkpoints):
        time.sleep(0.3)
        write(checkpoints)

    monkeypatch.setattr(Checkpoints, "_write_sums", write_late)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ZeroDivisionError), checkpoints.settled():
        checkpoints.save(make_state(4, one_device), make_rows(4))
        assert checkpoints.steps() == []
        raise ZeroDivisionError
    assert checkpoints.steps() == [4]


@pytest.fixture
def copy(two_steps, tmp_path):
    """The same, to be damaged."""
    return shutil.copytree(two_steps, tmp_path / "checkpoints")


def restore(folder, mesh):
    """(state, next row) as a fresh process finds them."""
    rows = make_rows()
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore_latest(make_state(0, mesh), rows), rows
    finally:
        checkpoints.close()


# --- digests

ARRAYS = [np.arange(48, dtype=np.float32).reshape(8, 6), np.zeros((8, 3), jnp.bfloat16),
          np.arange(16, dtype=np.int8), np.arange(8) % 3 == 0, np.float32(2.5),
          np.arange(8, dtype=np.int32), np.ones(16, jnp.float8_e4m3fn)]


def digest(*arrays):
    leaves = {str(i): array for i, array in enumerate(arrays)}
    return list(read_digests(leaves, start_digests(leaves))[0].values())


def reference_digest(array):
    """The same in numpy, word by word, from its definition."""
    bits = 8 * array.dtype.itemsize
    words = array.ravel().view(f"uint{bits}").astype(np.uint32)
    lanes = []
    for factor, start in ((0x9E3779B1, 0x243F6A88), (0xBB67AE85, 0x13198A2F)):
        total = 0
        for place, word in enumerate(words.tolist()):
            h = word ^ ((place * factor + start) % 2**32)
            h = ((h ^ h >> 16) * 0x85EBCA6B) % 2**32
            h = ((h ^ h >> 13) * 0xC2B2AE35) % 2**32
            total += h ^ h >> 16
        lanes.append(total % 2**32)
    return "{:08x}{:08x}".format(*lanes)


def test_digests_are_those_of_the_definition():
    assert digest(*map(jnp.asarray, ARRAYS)) == [reference_digest(array) for array in ARRAYS]


def test_digests_do_not_depend_on_the_mesh():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    cut = [jax.device_put(array, NamedSharding(mesh, P(("fsdp", "tensor")) if array.ndim else P()))
           for array in ARRAYS]
    assert digest(*cut) == digest(*map(jnp.asarray, ARRAYS))


WORDS = np.random.default_rng(0).normal(size=64).astype(np.float32)


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 31)), min_size=1, max_size=4,
                unique=True))
def test_digests_notice_flipped_bits(flips):
    words = WORDS.view(np.uint32).copy()
    for place, bit in flips:
        words[place] ^= np.uint32(1 << bit)
    before, after = digest(jnp.asarray(WORDS.view(np.uint32)), jnp.asarray(words))
    assert before != after
    if len(flips) == 1:     # certain in each of the two sums alone
        assert before[:8] != after[:8] and before[8:] != after[8:]


def test_digests_notice_the_top_bit_of_two_words_and_an_exchange():
    """Where sums of words times odd numbers are blind: both errors are multiples of 2^31."""
    both = WORDS.copy()
    both[[3, 17]] *= -1
    exchanged = WORDS.copy()
    exchanged[[3, 17]] = WORDS[[17, 3]]
    assert len(set(digest(*map(jnp.asarray, (WORDS, both, exchanged))))) == 3


# --- saved and restored

def test_a_state_saved_on_eight_devices_is_restored_on_one(tmp_path, one_device):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    save_steps(tmp_path, mesh, 3).close()
    state, rows = restore(tmp_path, one_device)
    assert bits(state) == bits(make_state(3, mesh))
    assert next(rows) == 3
    assert state.params["embed_VD"].sharding == make_state(0, one_device).params[
        "embed_VD"].sharding


def test_a_vocabulary_that_the_mesh_does_not_divide_is_saved_without_padding(tmp_path, one_device):
    meshes = (make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), one_device,
              make_mesh({"data": 2, "tensor": 4}))
    for step, (mesh, next_mesh) in enumerate(itertools.pairwise(meshes), start=3):
        checkpoints = Checkpoints(tmp_path / str(step))
        state = make_state(step, mesh, num_tokens=2047)
        assert state.params["embed_VD"].sharding.is_fully_replicated == (mesh is one_device)
        assert checkpoints.save(state, make_rows(step), required=True)
        restored = checkpoints.restore_latest(make_state(0, next_mesh, num_tokens=2047),
                                              make_rows())
        assert bits(restored) == bits(state) and restored.params["embed_VD"].shape == (2047, 8)
        checkpoints.close()


def test_what_is_saved_is_the_state_at_the_call(tmp_path, one_device):
    """The next step overwrites the state, in place, while the save goes on."""
    checkpoints, state = Checkpoints(tmp_path), make_state(5, one_device)
    expected, rows = bits(state), make_rows(5)
    overwrite = jax.jit(lambda state: state.replace(
        params=jax.tree.map(lambda leaf: leaf * 0 - 1, state.params)), donate_argnums=0)
    checkpoints.save(state, rows)
    jax.block_until_ready(overwrite(state))
    next(rows)
    checkpoints.close()
    restored, rows = restore(tmp_path, one_device)
    assert bits(restored) == expected
    assert next(rows) == 5


def test_an_abstract_state_is_enough(two_steps, one_device):
    mesh = one_device
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding), make_state(0, mesh))
    checkpoints, rows = Checkpoints(two_steps), make_rows()
    assert bits(checkpoints.restore(4, abstract, rows)) == bits(make_state(4, mesh))
    assert next(rows) == 4
    checkpoints.close()


def test_where_nothing_was_saved_there_is_nothing_to_restore(tmp_path, one_device):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore_latest(make_state(0, one_device), make_rows()) is None
    checkpoints.close()


def test_retention_keeps_the_newest_and_every_tenth(tmp_path, one_device):
    checkpoints = save_steps(tmp_path, one_device, 5, 10, 15, 20, 25, keep=2, keep_every=10)
    assert checkpoints.steps() == [10, 20, 25]
    assert checkpoints.save(make_state(25, one_device), make_rows(25)), "is saved already"
    checkpoints.delete_after(10)
    assert checkpoints.steps() == [10]
    checkpoints.close()


def test_going_back_keeps_its_step_though_a_save_ends_meanwhile(tmp_path, one_device):
    checkpoints = save_steps(tmp_path, one_device, 9, 10, keep=2)
    assert checkpoints.save(make_state(12, one_device), make_rows(12))  # in the background
    checkpoints.delete_after(9)     # with 10 and 12, step 9 would be too old to be kept
    assert checkpoints.steps() == [9]
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["9"]


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, one_device):
    checkpoints, state = Checkpoints(tmp_path), make_state(2, one_device)
    state.params["blocks"]["w_DF"] = state.params["blocks"]["w_DF"].at[0, 1, 2].set(jnp.nan)
    with pytest.raises(UserError, match="step 2: params/blocks/w_DF: is not finite"):
        checkpoints.save(state, make_rows())
    checkpoints.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_abstract", [False, True])
def test_another_architecture_is_refused_and_is_no_damage(two_steps, one_device, is_abstract):
    state = make_state(0, one_device, width=16)
    if is_abstract:
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    checkpoints = Checkpoints(two_steps)
    line = r"/8: opt_state/0/mu/blocks/w_DF is bfloat16 \(2, 8, 16\), .* is bfloat16 \(2, 16, 16\)"
    for call in (checkpoints.restore_latest, partial(checkpoints.restore, 8)):
        rows = make_rows()
        with pytest.raises(UserError, match=line):
            call(state, rows)
        assert next(rows) == 0, "the loader stands where it stood"
    assert checkpoints.steps() == [4, 8]
    with pytest.raises(UserError, match="/8: has no ema/embed_VD, which this"):
        checkpoints.restore_latest(make_state(0, one_device).replace(
            ema={"embed_VD": make_state(0, one_device).params["embed_VD"]}), make_rows())
    checkpoints.close()


# --- damage

@pytest.mark.parametrize("is_deleted", [False, True])
def test_damage_to_any_file_is_noticed_or_changes_nothing(two_steps, tmp_path, one_device,
                                                          is_deleted):
    """One flipped bit, or no file at all."""
    expected = {step: bits(make_state(step, one_device)) for step in (4, 8)}
    files = [path.relative_to(two_steps / "8") for path in sorted((two_steps / "8").rglob("*"))
             if path.is_file()]
    rng, noticed = np.random.default_rng(0), set()
    for number, name in enumerate(files):
        folder = shutil.copytree(two_steps, tmp_path / str(number))
        data = bytearray((folder / "8" / name).read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (folder / "8" / name).write_bytes(data)
        if is_deleted:
            (folder / "8" / name).unlink()
        state, rows = restore(folder, one_device)
        step = int(state.step)
        assert bits(state) == expected[step] and next(rows) == step, name
        assert (folder / "8.damaged").exists() == (step == 4), name
        if step == 4:
            noticed.add(str(name))
    unnoticed = {str(name) for name in files} - noticed
    assert unnoticed <= {"_CHECKPOINT_METADATA", "commit_success.txt"}


@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted"])
def test_a_file_that_is_not_whole_is_noticed(copy, one_device, damage, capfd):
    path = max((copy / "8" / "state" / "ocdbt.process_0" / "d").iterdir(),
               key=lambda path: path.stat().st_size)
    if damage == "deleted":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if damage == "truncated" else 0)
    state, _ = restore(copy, one_device)
    assert bits(state) == bits(make_state(4, one_device))
    assert "checkpoint 8 is damaged" in capfd.readouterr().err
    assert {path.name for path in copy.iterdir()} == {"4", "8.damaged"}


def test_a_fault_on_the_way_to_the_disk_is_noticed(copy, one_device, capsys):
    """Files as they were written, and sums that fit; but what was written was something else."""
    shutil.rmtree(copy / "8" / "state")
    shutil.copytree(copy / "4" / "state", copy / "8" / "state")
    write_sums(copy / "8", (copy / "8").glob("*/**/*"))
    state, _ = restore(copy, one_device)
    assert bits(state) == bits(make_state(4, one_device))
    assert "checkpoint 8 is damaged (" in (said := capsys.readouterr().err)
    assert "is not what was saved): kept as 8.damaged" in said


def test_when_nothing_is_intact_the_run_does_not_begin_again(copy, one_device):
    for step in ("4", "8"):
        (copy / step / "record" / "metadata").unlink()
    for _ in range(2):      # the second time both have been set aside
        with pytest.raises(UserError, match="holds no checkpoint that is intact"):
            restore(copy, one_device)
    assert {path.name for path in copy.iterdir()} == {"4.damaged", "8.damaged"}


def test_a_step_under_another_name_is_damage(copy, one_device):
    os.rename(copy / "8", copy / "9")
    state, _ = restore(copy, one_device)
    assert int(state.step) == 4


def test_a_file_that_may_not_be_read_is_no_damage(copy, one_device, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(copy / "8"))
    checkpoints = Checkpoints(copy)
    monkeypatch.setattr(checkpoints._checkpointer, "restore", refuse)
    with pytest.raises(PermissionError):
        checkpoints.restore_latest(make_state(0, one_device), make_rows())
    assert checkpoints.steps() == [4, 8]
    checkpoints.close()


def test_a_loader_of_other_data_is_refused_and_is_no_damage(copy, one_device):
    class OtherRows:
        def set_state(self, state):
            raise ValueError("the source is not the same\nand more")
    checkpoints = Checkpoints(copy)
    with pytest.raises(UserError, match=r"/8: is of a run over other data \(the source is not"):
        checkpoints.restore_latest(make_state(0, one_device), OtherRows())
    assert checkpoints.steps() == [4, 8]
    checkpoints.close()


# --- the disk

def test_leftovers_of_a_killed_save_are_removed(copy, one_device):
    for name in ("12.orbax-checkpoint-tmp", "2.deleted.orbax-checkpoint-tmp"):
        (copy / name / "state").mkdir(parents=True)
    assert int(restore(copy, one_device)[0].step) == 8
    assert {path.name for path in copy.iterdir()} == {"4", "8"}


def test_a_step_that_was_killed_amid_its_deletion_is_no_step(copy, monkeypatch):
    def stop(path):
        next(path.rglob("manifest.ocdbt")).unlink()
        raise KeyboardInterrupt
    folders = retention.StepFolders(copy, keep=1, keep_every=0)
    monkeypatch.setattr(retention.shutil, "rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        folders.delete_old()
    assert folders.steps() == [8]
    monkeypatch.undo()
    retention.StepFolders(copy, keep=1, keep_every=0)
    assert {path.name for path in copy.iterdir()} == {"8"}


def test_files_that_a_failed_save_still_writes_are_deleted_too(tmp_path, monkeypatch):
    folders = retention.StepFolders(tmp_path, keep=1, keep_every=0)
    late, sleeps = tmp_path / f"4{retention.TMP_SUFFIX}" / "state", []

    def sleep(secs):        # in which threads of the save write another file, three times
        sleeps.append(secs)
        if len(sleeps) <= 3:
            late.mkdir(parents=True)
            (late / "late").write_bytes(b"late")
    late.mkdir(parents=True)
    monkeypatch.setattr(retention.time, "sleep", sleep)
    folders.remove_leftovers()
    assert not list(tmp_path.iterdir()) and len(sleeps) == 4


def test_room_is_made_from_what_is_old(copy, one_device, monkeypatch, capsys):
    """A disk that holds two steps and not three."""
    size = sum(retention._size_bytes(copy / step) for step in ("4", "8")) + (1 << 20)

    def usage(folder):
        used = sum(retention._size_bytes(path) for path in copy.iterdir())
        return collections.namedtuple("Usage", "free")(size - used)
    monkeypatch.setattr(retention.shutil, "disk_usage", usage)
    os.rename(copy / "4", copy / "4.damaged")
    checkpoints = Checkpoints(copy, keep=2)
    assert checkpoints.save(make_state(12, one_device), make_rows(12), required=True)
    assert "deleting 4.damaged" in capsys.readouterr().err
    assert checkpoints.steps() == [8, 12]
    checkpoints.close()
    assert int(restore(copy, one_device)[0].step) == 12


def test_no_room_at_all_costs_a_checkpoint_and_not_the_run(copy, one_device, monkeypatch, capsys):
    monkeypatch.setattr(retention.shutil, "disk_usage",
                        lambda folder: collections.namedtuple("Usage", "free")(1000))
    checkpoints = Checkpoints(copy)
    assert not checkpoints.save(make_state(12, one_device), make_rows(12))
    assert "step 12 could not be saved (no space left on device)" in capsys.readouterr().err
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(make_state(12, one_device), make_rows(12), required=True)
    assert checkpoints.steps() == [4, 8], "nothing was deleted, for it would not have helped"
    monkeypatch.undo()
    assert checkpoints.save(make_state(16, one_device), make_rows(16), required=True)
    checkpoints.close()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   ValueError("OUT_OF_RANGE: Error writing: File too large "
                                              "[os_error_code='27']")])
def test_a_disk_that_fills_up_while_saving_leaves_nothing_behind(copy, one_device, monkeypatch,
                                                                 capsys, error):
    checkpoints = Checkpoints(copy)
    checkpoints.save(make_state(12, one_device), make_rows(12))
    wait = checkpoints._checkpointer.wait_until_finished

    def fail():
        wait()
        os.rename(copy / "12", copy / "12.orbax-checkpoint-tmp")    # as it is when a write fails
        raise error
    monkeypatch.setattr(checkpoints._checkpointer, "wait_until_finished", fail)
    checkpoints._settle()
    monkeypatch.undo()
    assert "step 12 could not be saved" in capsys.readouterr().err
    assert {path.name for path in copy.iterdir()} == {"4", "8"}
    assert checkpoints.save(make_state(16, one_device), make_rows(16), required=True)
    checkpoints.close()
    assert int(restore(copy, one_device)[0].step) == 16


def test_an_error_that_is_none_of_the_disk_is_a_bug():
    with pytest.raises(ValueError, match="unknown handler"):
        as_disk_error(ValueError("unknown handler"), "folder")
