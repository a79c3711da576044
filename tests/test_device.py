import subprocess
import sys

import torch

from nas_kd.device import best_device, numerics, one_thread


def test_importing_it_does_not_import_torch():
    script = "import sys, nas_kd.device; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_gpu_is_taken_where_there_is_one(monkeypatch):
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert best_device() == name


def test_the_threads_of_a_cpu_are_part_of_its_numerics_and_come_back():
    before = numerics("cpu")
    assert before == f"threads={torch.get_num_threads()}"
    with one_thread():
        assert numerics("cpu") == "threads=1"
    assert numerics("cpu") == before
