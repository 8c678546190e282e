"""The memory of layers' results is kept by the process, in dask's workers too, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from xsuperres.inference import allocator, devices

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have allocators of their own")

LAYERS = """
import resource, threading
import torch
from xsuperres.inference.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = torch.zeros(2**20)
    for _ in range(20):
        x = x + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():  # in a thread, as dask's tasks are
    faults()
    before = faults()
    kept = keep_freed_memory()
    faults()
    print(before, kept, faults())

torch.set_num_threads(1)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


SETTING = "from xsuperres.inference.allocator import keep_freed_memory; print(keep_freed_memory())"


def child(program: str, **environment: str) -> list[str]:
    """Return the words that a process with these variables prints, and none of the allocator's besides."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=others | environment, check=True, stdout=subprocess.PIPE, text=True)
    return run.stdout.split()


def test_a_worker_of_dask_does_not_fetch_each_layer_anew():
    before, kept, after = child(LAYERS, MALLOC_TRIM_THRESHOLD_="65536")
    pages = 20 * 2**22 // os.sysconf("SC_PAGE_SIZE")
    assert int(before) > 0.8 * pages, "the control: dask's setting gives everything back"
    assert kept == "True" and int(after) < 0.2 * pages


@pytest.mark.parametrize(
    "given",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    ],
)
def test_what_the_user_has_set_stays(given):
    assert child(SETTING, **given) == ["False"]


def test_nothing_is_set_by_the_user_as_a_rule():
    assert child(SETTING) == ["True"]


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()


def test_it_is_set_once_before_the_first_block(monkeypatch):
    calls = []
    monkeypatch.setattr(devices, "_SLOTS", {})
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: calls.append(1))
    for _ in range(3):
        with devices.device_of("cpu").gate():
            pass
    assert calls == [1]
