"""The external group-by and the Bloom filter: the result does not depend on memory."""

import tracemalloc

import numpy as np
import pytest

from core.errors import UserError
from data.dedup import groups
from data.dedup.bloom import BloomSeen, bloom_bytes
from data.dedup.groups import find_groups, first_occurrences, plan_ranges


def _write(folder, arrays):
    paths = [folder / f"{part}.npy" for part in range(len(arrays))]
    for path, array in zip(paths, arrays):
        np.save(path, array)
    return paths


@pytest.fixture(params=(1, 2), ids=("64 bit", "128 bit"))
def keys(request):
    """Five parts (one empty) of keys that repeat; of those of 128 bits some differ in the second
    half only. One key has a fifth of the records."""
    key = np.random.default_rng(0)
    pool = key.integers(0, 2**64, (4000, request.param), np.uint64)
    pool[:300, 0] = pool[0, 0]
    if request.param == 1:
        pool[:300] = pool[0]
    places = key.integers(0, len(pool), 10_000)
    places[key.random(len(places)) < 0.2] = 7
    return np.split(pool[places], [3000, 3000, 5000, 9000])


def _oracle(keys):
    places = {}
    for part, array in enumerate(keys):
        for position, key in enumerate(map(tuple, array.tolist())):
            places.setdefault(key, []).append((part, position))
    return places


@pytest.mark.parametrize("num_passes", (1, 16))
def test_groups_are_those_of_a_dictionary_in_the_order_of_keys(keys, num_passes, tmp_path):
    paths, words = _write(tmp_path, keys), keys[0].shape[1]
    memory = 10_000 * groups.RECORD_BYTES // num_passes
    num_ranges = len(plan_ranges(paths, memory_bytes=memory, key_words=words))
    assert num_ranges == 1 if num_passes == 1 else num_ranges >= num_passes * 0.7
    grouped = [list(zip(group.parts.tolist(), group.positions.tolist()))
             for group in find_groups(paths, memory_bytes=memory, key_words=words)]
    oracle = _oracle(keys)
    assert grouped == [oracle[key] for key in sorted(oracle) if len(oracle[key]) > 1]


@pytest.mark.parametrize("num_passes", (1, 16, 200))
def test_first_occurrences_are_those_of_a_dictionary(keys, num_passes, tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "CHUNK_RECORDS", 1024)   # the frequent key takes several lots
    paths, words = _write(tmp_path, keys), keys[0].shape[1]
    outputs = [tmp_path / f"{part}.first.npy" for part in range(len(keys))]
    num_repeats = first_occurrences(paths, outputs, key_words=words,
                                    memory_bytes=10_000 * groups.RECORD_BYTES // num_passes)
    oracle = _oracle(keys)
    assert num_repeats == sum(len(places) - 1 for places in oracle.values())
    want = sorted((place, places[0]) for places in oracle.values() if len(places) > 1
                  for place in places)
    got = [((part, position), (first_part, first)) for part, output in enumerate(outputs)
           for position, first_part, first in np.load(output).tolist()]
    assert got == want
    assert not list(tmp_path.glob("*.partial"))


def test_memory_is_bounded_by_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "CHUNK_RECORDS", 1 << 10)
    key = np.random.default_rng(0)
    paths = _write(tmp_path, [key.integers(0, 1 << 17, 30_000, np.uint64) << np.uint64(47)
                              for _ in range(5)])
    cap, peaks = 1 << 20, []
    for run in (lambda: sum(1 for _ in find_groups(paths, memory_bytes=cap)),
                lambda: first_occurrences(paths, [tmp_path / f"{n}.out" for n in range(5)],
                                          memory_bytes=cap)):
        tracemalloc.start()
        assert run() > 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert 10 * cap < groups.RECORD_BYTES * 150_000
    # The repeats of one unit are sorted at the end, whatever the cap.
    assert peaks[0] < 1.2 * cap and peaks[1] < 1.2 * cap + 30_000 * groups.MATCH.itemsize * 2


def test_keys_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keys are uint64"):
        list(find_groups(_write(tmp_path, [np.arange(3.0)]), memory_bytes=1 << 20))


def test_bloom_filter_keeps_its_rate_and_its_size():
    seen = BloomSeen(20_000, 0.01, memory_bytes=30_000)
    keys = np.random.default_rng(0).integers(0, 2**64, 40_000, np.uint64).tolist()
    first = seen.add([*keys[:20_000], *keys[:500]])
    assert first[20_000:].all() and first[:20_000].mean() < 0.01
    assert seen.num_bytes == pytest.approx(bloom_bytes(20_000, 0.01), rel=0.01)
    report = seen.report()
    assert report["keys"] == pytest.approx(20_000, rel=0.02)
    rate = np.mean([seen.add([key])[0] for key in keys[20_000:22_000]])
    assert rate == pytest.approx(report["false_positive_rate"], rel=0.5)


def test_bloom_filter_beyond_the_memory_limit_is_refused():
    with pytest.raises(UserError, match=r"take 3594\d* bytes: raise it to 3594"):
        BloomSeen(10_000, 1e-6, memory_bytes=30_000)
    with pytest.raises(UserError, match="between 0 and 1"):
        BloomSeen(10, 0.0, memory_bytes=30_000)
