"""Execution: read from a stage's section, and errors that name the field."""

import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from model.execution import Execution, make_execution


def _section(**run):
    return ConfigDict({"out": "base", "compute_dtype": "bfloat16", "matmul": "int8", "run": run})


def test_dtypes_are_read_from_the_section_and_other_fields_from_run():
    assert make_execution(_section()) == Execution(compute_dtype="bfloat16", matmul="int8")
    execution = make_execution(_section(remat="full", loss_chunks=4, log_every=10),
                               also=["log_every"])
    assert execution == Execution("bfloat16", "int8", remat="full", loss_chunks=4)


@pytest.mark.parametrize("name", ["rematerialise", "compute_dtype", "matmul", "log_every"])
def test_an_unknown_field_of_run_is_refused_by_its_name(name):
    with pytest.raises(UserError, match=rf"^base: run\.{name}: is no field of this stage: choose "
                                        r"among attention, .*, remat, save_every, scan_unroll$"):
        make_execution(_section(**{name: "full"}), also=["save_every"])


@pytest.mark.parametrize("changes, line", [
    ({"remat": "some"}, "remat='some': is none of none, dots, full, names:TAG,..., offload:TAG,"),
    ({"compute_dtype": "float16"}, "compute_dtype='float16': is none of float32, bfloat16: "),
    ({"matmul": "int4"}, "matmul='int4': is none of compute, int8, fp8: "),
    ({"attention": "flash"}, "attention='flash': is none of auto, xla, cudnn, pallas, splash: "),
    ({"context_attention": "tree"}, "context_attention='tree': is none of ring, all_gather: "),
    ({"pipeline_microbatches": -1}, "SECTION.run.pipeline_microbatches=-1: must be a whole"),
    ({"pipeline_rounds": 0}, "SECTION.run.pipeline_rounds=0: must be a whole"),
    ({"scan_unroll": 0}, "SECTION.run.scan_unroll=0: must be a whole"),
    ({"loss_chunks": -1}, "SECTION.run.loss_chunks=-1: must be a whole")], ids=str)
def test_a_value_that_breaks_a_rule_is_refused(changes, line):
    with pytest.raises(UserError) as raised:
        Execution(**changes)
    assert str(raised.value).startswith(line)
