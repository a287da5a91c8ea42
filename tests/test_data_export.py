"""Export: the columns of every document as JSONL, which the readers take as an input."""

import json

import pytest
from planted_corpus import write_planted

from core.errors import UserError
from data.corpus import Corpus
from data.documents import SCHEMA
from data.export import export
from data.readers import storage
from data.readers.read import read
from data.readers.units import find_inputs, plan


@pytest.mark.parametrize(("packing", "suffix"), [("zstd", ".zst"), ("gzip", ".gz"), ("none", "")])
def test_every_document_is_exported_and_can_be_read_again(tmp_path, packing, suffix):
    corpus, to = Corpus(write_planted(tmp_path / "corpus")), tmp_path / "out"
    rows = [row for _, row in corpus.rows("documents", SCHEMA.names)]
    assert export(corpus, to, packing=packing) == {"documents": len(rows), "path": str(to)}
    paths = find_inputs(str(to))
    assert paths and all(path.endswith(f".jsonl{suffix}") for path in paths)
    records = [record for unit in plan(paths, 1 << 20) for record in read(unit)]
    assert [(record.content, record.id) for record in records] == [
        (row["text"], row["id"]) for row in rows]
    line = json.loads(storage.read_whole(paths[0]).partition(b"\n")[0])
    assert line == rows[0] | {"meta": json.loads(rows[0]["meta"])}
    with pytest.raises(UserError, match="exists already"):
        export(corpus, to)


def test_a_damaged_corpus_is_named_and_nothing_half_written_is_left_under_the_name(tmp_path):
    corpus, to = Corpus(write_planted(tmp_path / "corpus")), tmp_path / "out"
    corpus.parts["removed"][0].write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"removed.*cannot be read"):
        export(corpus, to, "removed")
    assert not to.exists()
