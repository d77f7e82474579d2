"""`make test` runs three processes on two cores: each, and what it starts, keeps to one thread."""

import os
import subprocess
import sys
from pathlib import Path

import file_order
import pytest
import torch

from labutils.onnxfile import session


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="no process runs beside it")
def test_a_process_beside_others_and_its_children_have_one_thread():
    program = "import torch; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, torch.get_num_threads()) == ("1\n", 1), done.stderr
    assert session.options().intra_op_num_threads == 1


def test_the_longest_files_begin_first(request):
    names = [file.stem for file in Path(__file__).parent.rglob("test_*.py")]
    assert {names.count(name) for name in file_order.LONGEST} == {1}
    stems = list(dict.fromkeys(item.path.stem for item in request.session.items))
    known = [stem for stem in stems if stem in file_order.LONGEST]
    assert stems[: len(known)] == sorted(known, key=file_order.LONGEST.index)
