"""Devices: chosen by the process that runs the task, one block at a time on a GPU, short memory, precisions.

Without a GPU a fake one stands for it: the same layer, with a small memory, and copies that come late.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xsuperres.config import SamplingConfig
from xsuperres.errors import ConfigError, UnknownNameError, XSuperResError
from xsuperres.inference import devices, float32, frames, prepared, tile, workers
from xsuperres.inference.devices import ON_CPU, CudaDevice, Device, Downloads, Execution, choose_device, device_of
from xsuperres.nn.network import SuperResolution
from xsuperres.testing import toy_field

WHOLE = SamplingConfig(patch_size=None, batch_size=1)
RANK = """
import sys, torch
torch.cuda.is_available, torch.cuda.device_count = (lambda: True), (lambda: 2)
from xsuperres.inference.devices import choose_device
print(choose_device("auto"), choose_device("cuda"), choose_device("cuda:0"), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A process that has chosen nothing, on a host of its own."""
    monkeypatch.setattr(workers, "_PREPARED", {})
    monkeypatch.setattr(devices, "_SLOTS", {})
    monkeypatch.setattr(devices, "_RANK", {})
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))


@pytest.fixture
def gpus(monkeypatch):
    """Let torch say that it sees so many GPUs."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


class Late(Downloads):
    """Keeps results until it must give them."""

    def __init__(self):
        self.pending = []

    def put(self, result, place):
        self.pending.append((result.clone(), place))

    def finish(self):
        for result, place in self.pending:
            place[...] = result.numpy()


class FakeGpu(CudaDevice):
    """A GPU made of the CPU, which has memory for so many frames at once."""

    floats = 2**40

    def __init__(self, capacity=10**6):
        super().__init__("cuda:0")
        self.torch, self.capacity, self.inside, self.most, self.released = torch.device("cpu"), capacity, 0, 0, 0

    precisions = devices.PRECISIONS

    def gate(self):
        return self.turn

    def arithmetic(self, precision):
        return Device.arithmetic(self, precision)

    def upload(self, values):
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.002)
        self.inside -= 1
        if values.ndim == 4 and len(values) > self.capacity:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return Device.upload(self, values)

    def downloads(self):
        return Late()

    def release(self):
        self.released += 1


@pytest.fixture
def fake(gpus, monkeypatch):
    """Make every device but the CPU a fake GPU."""

    def build(**options):
        gpu = FakeGpu(**options)
        gpus(1)
        for module in (devices, prepared, tile):
            monkeypatch.setattr(module, "device_of", lambda name: gpu if name != "cpu" else device_of("cpu"))
        return gpu

    return build


# which


def test_auto_is_what_is_there(gpus):
    gpus(0)
    assert choose_device("auto") == "cpu" == choose_device("cpu")
    gpus(1)
    assert choose_device("auto") == "cuda:0" == choose_device("cuda")
    assert choose_device("cpu") == "cpu"


def test_each_process_of_a_host_takes_another_gpu(tmp_path):
    """Four at a time on two GPUs; the place of one that ends is free again."""

    def start():
        environment = {**devices.os.environ, "TMPDIR": str(tmp_path)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", RANK], env=environment, **pipes)
        return process, process.stdout.readline().split()

    running = [start() for _ in range(3)]
    assert [found for _, found in running] == [
        ["cuda:0", "cuda:0", "cuda:0"],
        ["cuda:1", "cuda:1", "cuda:0"],
        ["cuda:0", "cuda:0", "cuda:0"],
    ]
    running[1][0].kill()
    running[1][0].wait()
    running.append(start())
    assert running[-1][1][0] == "cuda:1"
    for process, _ in running:
        process.communicate()


def test_a_dask_cuda_worker_finds_its_own_first(gpus, monkeypatch):
    """It is known by its plugins: other workers may have imported dask-cuda with the script that started them."""
    import distributed

    plugin = type("CPUAffinity", (), {"__module__": "dask_cuda.plugins"})()
    worker = SimpleNamespace(plugins={})
    gpus(4)
    monkeypatch.setattr(devices, "_rank", lambda: 3)
    assert choose_device("auto") == "cuda:3"
    monkeypatch.setitem(sys.modules, "dask_cuda", object())
    assert choose_device("auto") == "cuda:3", "no worker at all"
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    assert choose_device("auto") == "cuda:3"
    worker.plugins["CPUAffinity"] = plugin
    assert choose_device("auto") == "cuda:0"
    assert choose_device("cuda:2") == "cuda:2"


def test_the_cpu_has_other_names(gpus):
    for count in (0, 2):
        gpus(count)
        assert choose_device("cpu:0") == choose_device("cpu:1") == "cpu"


@pytest.mark.parametrize("device", ["gpu", "graphics card", "", "cpu:x", "mps", "xpu", "meta", None, 1.5])
def test_a_device_that_is_none(device, make_model):
    """Known at once, also where the result is lazy; torch takes some of these names on any machine."""
    for call in (choose_device, lambda device: Execution(device=device)):
        with pytest.raises(ConfigError, match="device must be 'auto', 'cpu'.* or like 'cuda:0'"):
            call(device)
    toy = make_model()
    with pytest.raises(ConfigError, match="device must be"):
        toy.coarse.chunk(time=1).sr.downscale(toy.model, device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there(device, gpus, make_model):
    gpus(0)
    toy = make_model()
    with pytest.raises(ConfigError, match="torch sees 0 GPU.*; use device='cpu'"):
        toy.coarse.sr.downscale(toy.model, device=device)
    lazy = toy.coarse.chunk(time=1).sr.downscale(toy.model, device=device)  # workers may have one
    with pytest.raises(ConfigError, match="torch sees 0 GPU"):
        lazy.compute(scheduler="synchronous")


def test_a_gpu_too_many(gpus):
    gpus(1)
    assert choose_device("cuda:0") == "cuda:0"
    with pytest.raises(ConfigError, match="cuda:7"):
        choose_device("cuda:7")


# gates


def most_inside(gate, tasks=16):
    """Return how many of the tasks were inside the gate at once."""
    inside, most, lock = 0, 0, threading.Lock()

    def work(_):
        nonlocal inside, most
        with gate():
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(tasks)))
    return most


def test_blocks_on_the_cpu_share_the_cores(monkeypatch):
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert most_inside(lambda: device_of("cpu").gate()) == 2


def test_there_is_always_room_for_one(monkeypatch):
    monkeypatch.setattr(devices.os, "cpu_count", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    with device_of("cpu").gate():
        pass


def test_a_task_that_fails_gives_its_place_back(monkeypatch, make_model):
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), device_of("cpu").gate():
            raise ZeroDivisionError
    toy = make_model()
    assert np.isfinite(toy.coarse.sr.downscale(toy.model)).all()


class Properties:
    uuid = "GPU-1"


def test_one_block_at_a_time_on_a_gpu_while_the_cpu_goes_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 4)
    gpu = CudaDevice("cuda:0")
    assert most_inside(gpu.gate) == 1
    with gpu.gate():
        assert most_inside(lambda: device_of("cpu").gate(), tasks=8) == 4


HOLD = """
import sys, torch
torch.cuda.get_device_properties = lambda device: type("Properties", (), {"uuid": "GPU-1"})
from xsuperres.inference.devices import CudaDevice
with CudaDevice("cuda:0").gate():
    print("inside", flush=True)
    sys.stdin.read()
"""


def test_two_processes_share_a_gpu_by_turns(monkeypatch, tmp_path):
    """Another name for the same GPU, as another process has, waits too; one that dies lets the next one in."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    environment = {**devices.os.environ, "TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", HOLD], env=environment, **pipes)
    assert other.stdout.readline() == "inside\n"
    entered = threading.Event()

    def enter():
        with CudaDevice("cuda:1").gate():
            entered.set()

    waiting = threading.Thread(target=enter, daemon=True)
    waiting.start()
    assert not entered.wait(0.3)
    other.kill()
    other.communicate()
    assert entered.wait(5)


# on a (fake) gpu


def test_results_are_those_of_the_cpu_and_all_arrive(fake, make_model):
    toy = make_model(coarse=(20, 24))
    expected = toy.coarse.sr.downscale(toy.model, device="cpu", batch_size=1)
    gpu = fake()
    np.testing.assert_array_equal(toy.coarse.sr.downscale(toy.model, batch_size=1), expected)
    lazy = toy.coarse.chunk(time=1, lat=10, lon=12).sr.downscale(toy.model, batch_size=1)
    lazy.compute(scheduler="threads", num_workers=4)
    assert gpu.most == 1


def test_out_of_memory_halves_the_sub_batch_and_says_so(fake, make_model, caplog):
    toy = make_model()
    few = toy.coarse.isel(time=[0, 1, 2, 1, 0, 2, 2, 1])
    expected = few.sr.downscale(toy.model, device="cpu")
    gpu = fake(capacity=2)
    with caplog.at_level(logging.WARNING, "xsuperres"):
        got = few.sr.downscale(toy.model)
    np.testing.assert_array_equal(got, expected)
    assert gpu.released == 2
    assert [record.getMessage() for record in caplog.records] == [
        "cuda:0 is out of memory with 8 fields at once; trying 4.",
        "cuda:0 is out of memory with 4 fields at once; trying 2.",
    ]


def test_windows_survive_short_memory(fake):
    fine = toy_field(time=9, y=16, x=24)
    options = {"network": {"width": 5, "depth": 1, "head_width": 4}, "optimization": {"max_steps": 2}}
    model = fine.sr.fit(2, time_window=3, validation=None, progress=False, activate=False, **options)
    coarse = fine.sr.coarsen(2)
    expected = coarse.sr.downscale(model, device="cpu")
    gpu = fake(capacity=4)
    np.testing.assert_allclose(coarse.sr.downscale(model), expected, rtol=0, atol=1e-5)
    assert gpu.released > 0


def test_the_size_that_fits_is_remembered(fake, make_model, caplog):
    """Else every block of an archive would fail first, and say so."""
    toy = make_model()
    many = toy.coarse.isel(time=[0, 1, 2, 1, 0, 2, 2, 1])
    gpu = fake(capacity=2)
    with caplog.at_level(logging.WARNING, "xsuperres"):
        many.chunk(time=4).sr.downscale(toy.model).compute(scheduler="synchronous")
    assert gpu.released == 1 and len(caplog.records) == 1


@pytest.mark.parametrize("words", ["cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_libraries_say_it_in_their_own_words(fake, make_model, monkeypatch, check, words):
    toy = make_model()
    expected = toy.coarse.sr.downscale(toy.model, device="cpu")
    gpu = fake()
    true = SuperResolution.decode

    def short(network, features, *more):
        if len(features) > 1:
            raise RuntimeError(words)
        return true(network, features, *more)

    monkeypatch.setattr(SuperResolution, "decode", short)
    check.same_numbers(toy.coarse.sr.downscale(toy.model), expected, toy.model.scaling.sd)
    assert gpu.released == 1


@pytest.mark.parametrize(("where", "name"), [(SuperResolution, "fixed"), (workers, "prepare")])
def test_short_memory_before_the_first_field_says_what_to_do(fake, make_model, monkeypatch, where, name):
    toy = make_model()
    fake()

    def short(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(where, name, short)
    with pytest.raises(XSuperResError, match="does not fit into the memory of cuda:0.* device='cpu'"):
        toy.coarse.sr.downscale(toy.model)


def test_one_field_too_large_says_what_to_do(fake, make_model):
    toy = make_model()
    fake(capacity=0)
    with pytest.raises(XSuperResError, match="28 x 36 fine cells does not fit.*cuda:0.*smaller chunks in y and x"):
        toy.coarse.sr.downscale(toy.model)


def test_other_errors_are_not_taken_for_short_memory(make_model, monkeypatch):
    toy = make_model()

    def broken(*_):
        raise RuntimeError("the network is broken")

    monkeypatch.setattr(frames.EncodedFrames, "_encode", broken)
    with pytest.raises(RuntimeError, match="the network is broken"):
        toy.coarse.sr.downscale(toy.model)


class FakeStream:
    """Copies that are asked for not to block wait here until somebody waits for them."""

    def __init__(self, device=None):
        self.waiting = []

    def wait_stream(self, other):
        assert isinstance(other, FakeStream)


class FakeEvent:
    def record(self, stream):
        self.stream, self.count = stream, len(stream.waiting)

    def synchronize(self):
        for copy in self.stream.waiting[: self.count]:
            copy()


@pytest.fixture
def cuda(gpus, monkeypatch):
    """The true layer of GPUs, on a torch.cuda that is made of the CPU: streams, events, pinned memory."""

    def start():
        current, inside = FakeStream(), []
        true_copy, true_empty, true_to = torch.Tensor.copy_, torch.empty, torch.Tensor.to

        @contextmanager
        def stream(chosen):
            inside.append(chosen)
            yield
            inside.pop()

        def copy_(tensor, source, non_blocking=False):
            if not non_blocking:
                return true_copy(tensor, source)
            kept = source.clone()
            inside[-1].waiting.append(lambda: true_copy(tensor, kept))
            return tensor

        def to(tensor, *target, non_blocking=False, **options):
            assert not non_blocking or tensor in pinned
            return true_to(tensor, *target, **options)

        class Pinned(list):
            def __contains__(self, tensor):
                return any(tensor is one for one in self)

        pinned = Pinned()
        gpus(1)
        gpu = CudaDevice("cuda:0")
        gpu.torch = torch.device("cpu")
        gpu.floats = 2**12
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
        monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
        monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **options: true_empty(*size, **options))
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
        monkeypatch.setattr(torch.Tensor, "copy_", copy_)
        monkeypatch.setattr(torch.Tensor, "to", to)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        for module in (devices, prepared, tile):
            monkeypatch.setattr(module, "device_of", lambda name: gpu if name != "cpu" else device_of("cpu"))

    return start


@pytest.mark.parametrize("window", [None, 3])
def test_all_that_is_copied_beside_the_arithmetic_arrives(cuda, make_model, check, window):
    toy = make_model(coarse=(20, 24), options=(("time_window", window),))
    expected = toy.coarse.sr.downscale(toy.model, device="cpu")
    cuda()
    for size in (1, 2, None):
        check.same_numbers(toy.coarse.sr.downscale(toy.model, batch_size=size), expected, toy.model.scaling.sd)
    lazy = toy.coarse.chunk(time=2, lat=10, lon=12).sr.downscale(toy.model)
    check.same_numbers(lazy.compute(scheduler="threads", num_workers=4), expected, toy.model.scaling.sd)


def test_a_copy_that_nobody_waits_for_is_found_out(cuda, make_model, monkeypatch):
    """The control of the fake."""
    toy = make_model(coarse=(20, 24))
    expected = toy.coarse.sr.downscale(toy.model, device="cpu")
    cuda()
    monkeypatch.setattr(FakeEvent, "synchronize", lambda event: None)
    assert not np.allclose(toy.coarse.sr.downscale(toy.model, batch_size=1), expected, rtol=1e-3)


# precision


SWITCHES = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)


@pytest.fixture
def switches(monkeypatch):
    """Return a function that tells, or sets, torch's precision of products; it is left as it was."""
    before = [owner.fp32_precision for owner in SWITCHES]

    def told(precision=None):
        for owner in SWITCHES:
            if precision is not None:
                owner.fp32_precision = precision
        return [owner.fp32_precision for owner in SWITCHES]

    yield told
    for owner, value in zip(SWITCHES, before, strict=True):
        owner.fp32_precision = value


def test_float32_means_float32_for_these_calls_only(switches):
    gpu = CudaDevice("cuda:0")
    for users in ("tf32", "ieee"):
        switches(users)
        for precision in ("fp32", "bf16", "fp16"):
            with gpu.arithmetic(precision):
                assert switches() == ["ieee"] * 2
            assert switches() == [users] * 2
        with pytest.raises(ZeroDivisionError), gpu.arithmetic("tf32"):
            assert switches() == ["tf32"] * 2
            raise ZeroDivisionError
        assert switches() == [users] * 2


@pytest.mark.parametrize(
    "users",
    [
        "pass",
        "backends.cuda.matmul.allow_tf32 = True",
        "backends.cudnn.allow_tf32 = False",
        "torch.set_float32_matmul_precision('high')",
        "backends.fp32_precision = 'tf32'",
        "backends.cudnn.fp32_precision = 'tf32'",
        "backends.cudnn.conv.fp32_precision = 'ieee'",
    ],
)
def test_whatever_the_user_has_set_stays(users):
    """In torch's old words or its new ones, which it does not let anybody mix; a process each."""
    program = f"""
import torch
from torch import backends
from xsuperres.inference.devices import CudaDevice

def told():
    found = []
    for ask in (
        lambda: (backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.fp32_precision),
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            found.append(ask())
        except RuntimeError:
            found.append("refused")
    return found

{users}
before = told()
for precision in ("fp32", "tf32"):
    with CudaDevice("cuda:0").arithmetic(precision):
        inside = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision
        assert inside == (("ieee",) if precision == "fp32" else ("tf32",)) * 2, inside
assert told() == before, (told(), before)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_older_torch_has_other_words(monkeypatch):
    class Old:
        allow_tf32 = True

    monkeypatch.setattr(float32.torch.backends.cuda, "matmul", Old())
    monkeypatch.setattr(float32.torch.backends, "cudnn", Old())
    with CudaDevice("cuda:0").arithmetic("fp32"):
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32


def test_threads_that_want_other_precisions_wait_for_each_other(switches):
    """Also on two GPUs: the switch is one for the process."""
    switches("tf32")
    order, inside = [], threading.Event()

    def other():
        inside.wait(5)
        with CudaDevice("cuda:1").arithmetic("tf32"):
            order.append(("tf32", switches()))

    def alike():
        inside.wait(5)
        with CudaDevice("cuda:1").arithmetic("bf16"):
            order.append(("bf16", switches()))

    threads = [threading.Thread(target=work) for work in (other, alike)]
    with CudaDevice("cuda:0").arithmetic("fp32"):
        for thread in threads:
            thread.start()
        inside.set()
        threads[1].join(5)
        time.sleep(0.05)
        order.append(("fp32", switches()))
    threads[0].join(5)
    assert order == [("bf16", ["ieee"] * 2), ("fp32", ["ieee"] * 2), ("tf32", ["tf32"] * 2)]
    assert switches() == ["tf32"] * 2


@pytest.mark.parametrize("options", [{}, {"domain": "open"}, {"missing": True, "upsampling": "interpolation"}])
def test_no_convolution_is_done_in_whatever_precision_is_in_force(fake, make_model, monkeypatch, options):
    """Those of the network, and those of interpolation and contrast around it."""
    toy = make_model(**options)
    gpu = fake()
    toy.coarse.sr.downscale(toy.model)  # what is made of the static fields once, on the CPU
    inside, outside = [], []

    @contextmanager
    def noting(precision):
        inside.append(precision)
        yield
        inside.pop()

    true = torch.nn.functional.conv2d

    def convolve(values, weight, *more, **options):
        outside.extend([tuple(weight.shape)] if not inside else [])
        return true(values, weight, *more, **options)

    monkeypatch.setattr(gpu, "arithmetic", noting)
    monkeypatch.setattr(torch.nn.functional, "conv2d", convolve)
    toy.coarse.sr.downscale(toy.model)
    assert not outside


@pytest.mark.parametrize("backbone", ["conv", "residual", "dense", "unet", "convnext"])
@pytest.mark.parametrize("upsampling", ["interpolation", "subpixel", "resize", "deconvolution"])
def test_bfloat16_is_near_and_has_no_seams(make_model, backbone, upsampling):
    toy = make_model(backbone=backbone, upsampling=upsampling, coarse=(32, 36))
    sd = toy.model.scaling.sd
    exact = toy.coarse.sr.downscale(toy.model)
    whole = toy.coarse.sr.downscale(toy.model, precision="bf16")
    spread = float((exact - toy.coarse.sr.interpolate(2, like=exact)).std())  # of what the network adds
    assert 0 < float(abs(whole - exact).max()) <= 2e-2 * max(sd, 10 * spread)
    tiled = toy.coarse.chunk(time=1, lat=16, lon=18).sr.downscale(toy.model, precision="bf16")
    assert float(abs(tiled - whole).max()) <= 2e-2 * max(sd, 10 * spread)


@pytest.mark.parametrize(("capability", "missing"), [((7, 5), ["tf32", "bf16"]), ((8, 0), []), ((9, 0), [])])
def test_an_old_gpu_lacks_precisions(monkeypatch, capability, missing):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = CudaDevice("cuda:0")
    for precision in devices.PRECISIONS:
        if precision in missing:
            with pytest.raises(ConfigError, match=f"'{precision}' is not there on 'cuda:0', which has fp32, fp16"):
                gpu.check(precision)
        else:
            gpu.check(precision)


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_a_precision_that_the_device_has_not(make_model, precision):
    toy = make_model()
    with pytest.raises(ConfigError, match=f"precision='{precision}' is not there on 'cpu', which has fp32, bf16"):
        toy.coarse.sr.downscale(toy.model, device="cpu", precision=precision)


def test_settings_that_are_none(make_model):
    toy = make_model()
    with pytest.raises(UnknownNameError, match="Unknown precision 'fp8'"):
        toy.coarse.sr.downscale(toy.model, precision="fp8")
    with pytest.raises(ConfigError, match="compile must be True or False"):
        toy.coarse.sr.downscale(toy.model, compile="yes")


@pytest.mark.slow
@pytest.mark.parametrize(("window", "most"), [(None, 4), (3, 6)])
def test_compiled_is_the_same_and_compiles_for_all_shapes_at_once(make_model, check, window, most):
    """Tiles at edges and inside have different shapes, and so have the last sub-batches and the ends of series.

    One field, several, and a part of several that are kept are different programs to torch, of encoding and decoding.
    """
    from torch._dynamo.utils import counters

    toy = make_model(coarse=(40, 48), options=(("time_window", window),))
    expected = toy.coarse.sr.downscale(toy.model)
    counters.clear()
    for chunks in ({"time": 2, "lat": 14, "lon": 17}, {"time": 3, "lat": 20, "lon": 24}, {"lat": 13, "lon": 48}):
        lazy = toy.coarse.chunk(chunks).sr.downscale(toy.model, compile=True, batch_size=2)
        check.same_numbers(lazy.compute(scheduler="synchronous"), expected, toy.model.scaling.sd)
    assert 2 <= counters["stats"]["unique_graphs"] <= most
    assert not counters["graph_break"]


@pytest.mark.parametrize("network", [{"dropout": "spatial"}, {"attention": "channel"}])
def test_networks_that_ask_where_they_are_are_not_compiled(make_model, caplog, network):
    toy = make_model(network=tuple(network.items()), options=(("sampling", WHOLE),))
    with caplog.at_level(logging.WARNING, "xsuperres"):
        got = toy.coarse.sr.downscale(toy.model, compile=True)
    assert "compile=True is not for networks that are random or look at the whole domain" in caplog.text
    np.testing.assert_array_equal(got, toy.coarse.sr.downscale(toy.model))


# on a real one


@pytest.mark.gpu
@pytest.mark.parametrize("upsampling", ["interpolation", "subpixel", "resize", "deconvolution"])
def test_a_gpu_gives_what_the_cpu_gives(make_model, check, upsampling):
    toy = make_model(upsampling=upsampling, coarse=(40, 48))
    expected = toy.coarse.sr.downscale(toy.model, device="cpu")
    whole = toy.coarse.sr.downscale(toy.model, device="cuda", batch_size=2)
    check.same_numbers(whole, expected, 10 * toy.model.scaling.sd)
    tiled = toy.coarse.chunk(time=1, lat=20, lon=24).sr.downscale(toy.model, device="cuda")
    check.same_numbers(tiled.compute(), whole, toy.model.scaling.sd)
    for precision in ("tf32", "bf16", "fp16"):
        near = toy.coarse.sr.downscale(toy.model, device="cuda", precision=precision)
        assert float(abs(near - whole).max()) <= 0.2 * toy.model.scaling.sd


@pytest.mark.gpu
def test_a_gpu_that_is_out_of_memory_goes_on(make_model, monkeypatch, check):
    toy = make_model(coarse=(40, 48))
    expected = toy.coarse.sr.downscale(toy.model, device="cuda")
    true, calls = torch.Tensor.contiguous, []

    def short(tensor, **options):
        calls.append(len(tensor))
        if tensor.is_cuda and tensor.ndim == 4 and len(tensor) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return true(tensor, **options)

    monkeypatch.setattr(torch.Tensor, "contiguous", short)
    check.same_numbers(toy.coarse.sr.downscale(toy.model, device="cuda"), expected, toy.model.scaling.sd)
    assert max(calls) > 1


def test_on_cpu_is_the_default_of_what_is_prepared(make_model):
    assert prepared.prepare(make_model().model).device is device_of(ON_CPU.device)
