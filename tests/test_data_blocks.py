"""Repeated blocks against a plain search, and headers and footers of sites."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.dedup import blocks
from data.passes.compare import find_boilerplate, find_repeated_blocks


def _units(folder, units):
    """Writes texts with their sites as measured units; returns the units' paths."""
    paths = []
    for number, pages in enumerate(units):
        paths.append(folder / f"{number:05d}")
        pq.write_table(pa.table({
            "site": [site for site, _ in pages],
            "line_hashes": pa.array([blocks.hash_lines(text) for _, text in pages],
                                    pa.list_(pa.uint64()))}), f"{paths[-1]}.parquet")
    return paths


def _without_repeats(folder, units, num_lines, memory_bytes=1 << 30):
    """Texts of all units without repeated blocks."""
    paths = _units(folder, [[("", text) for text in texts] for texts in units])
    for path, texts in zip(paths, units):
        rows = range(len(texts))
        np.save(f"{path}.blocks.npy", blocks.block_keys(f"{path}.parquet", rows, num_lines))
    repeated = find_repeated_blocks(paths, folder, min_block_lines=num_lines,
                                    memory_bytes=memory_bytes)
    return [blocks.drop_lines(texts[row], mark)
            for path, texts, repeats in zip(paths, units, repeated)
            for row, mark in blocks.mark_blocks(f"{path}.parquet", range(len(texts)), num_lines,
                                                np.load(repeats))]


def _plainly(units, num_lines):
    """The same by comparing lists of lines, block by block."""
    seen, texts, start = {}, [], 0
    for text in (text for unit in units for text in unit):
        lines = text.split("\n")
        filled = [at for at, line in enumerate(lines) if line.strip()]
        mark = [False] * len(lines)
        for at in range(len(filled) - num_lines + 1):
            block = tuple(lines[place].strip() for place in filled[at:at + num_lines])
            if seen.setdefault(block, start + at) + num_lines <= start + at:
                for place in filled[at:at + num_lines]:
                    mark[place] = True
        start += max(len(filled) - num_lines + 1, 0)
        texts.append(blocks.drop_lines(text, mark))
    return texts


def test_the_first_occurrence_of_a_block_is_kept(tmp_path):
    block = "one\ntwo\n\nthree\nfour"
    units = [[f"head\n{block}\ntail"], [f"other\n  {block}  \nend", "one\ntwo\nalone"]]
    assert _without_repeats(tmp_path, units, 4) == [
        f"head\n{block}\ntail", "other\n\nend", "one\ntwo\nalone"]


def test_a_run_of_equal_lines_keeps_its_first_block(tmp_path):
    assert _without_repeats(tmp_path, [["x\n" * 9]], 3) == ["x\nx\nx"]


def test_repeated_blocks_equal_a_plain_search(tmp_path):
    chance = np.random.default_rng(0)
    units = [["\n".join(chance.choice(["a", "b", "", "c"], chance.integers(0, 40)))
              for _ in range(chance.integers(1, 6))] for _ in range(5)]
    for num_lines in (1, 2, 4):
        expected = _plainly(units, num_lines)
        assert _without_repeats(tmp_path, units, num_lines) == expected
        assert _without_repeats(tmp_path, units, num_lines, memory_bytes=1 << 20) == expected


def _boilerplate(folder, units, **limits):
    paths = _units(folder, units)
    for path, pages in zip(paths, units):
        np.save(f"{path}.edges.npy", blocks.edge_keys(f"{path}.parquet", range(len(pages))))
    return np.load(find_boilerplate(paths, folder, **limits))


def test_headers_and_footers_are_removed_per_site(tmp_path):
    def page(site, number):
        return site, (f"Menu\nHome | About\n\nstory {number}\nMenu\nend {number}\n\n"
                      "All rights reserved")

    units = [[page("a.example", number) for number in range(3)] + [page("b.example", 0)],
             [page("a.example", number) for number in range(3, 6)] + [("", "Menu\nno site")]]
    for memory_bytes in (1 << 30, 1):
        keys = _boilerplate(tmp_path, units, min_pages=4, min_frac=0.5,
                             memory_bytes=memory_bytes)
        assert len(keys) == 3      # "Menu", "Home | About", the last line: of a.example alone
    _, text = units[0][0]
    mark = blocks.mark_edges(blocks.hash_lines(text), "a.example", keys)
    # Inside a page the same line is content: "Menu" after the story stays.
    assert blocks.drop_lines(text, mark) == "story 0\nMenu\nend 0"
    assert not blocks.mark_edges(blocks.hash_lines(text), "b.example", keys).any()
    assert not blocks.mark_edges(blocks.hash_lines("Menu\nHome | About"), "a.example", keys).any()


def test_a_line_on_few_pages_is_not_boilerplate(tmp_path):
    pages = [("a.example", f"{'Introduction' if n < 5 else f'title {n}'}\nbody {n}\nend {n}")
             for n in range(40)]
    assert len(_boilerplate(tmp_path, [pages], min_pages=4, min_frac=0.5,
                            memory_bytes=1 << 30)) == 0
    assert len(_boilerplate(tmp_path, [pages], min_pages=4, min_frac=0.1,
                            memory_bytes=1 << 30)) == 1
