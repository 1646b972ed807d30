"""The benchmark harness on a clock that never lies, the problems it times, and one tiny run of it all."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
import types
from collections import Counter
from pathlib import Path

import pytest
import torch

from clebsch import backend, graph
from clebsch.nn import symmetric_contraction

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))  # benchmarks are not installed

from benchmarks import (  # noqa: E402
    NAMES,
    accelerate,
    convolution,
    linear,
    memory,
    peers,
    problems,
    published,
    report,
    steps,
)
from benchmarks.__main__ import main, parse, stem  # noqa: E402
from benchmarks.clients import Case, Problem  # noqa: E402
from benchmarks.device import Cpu, Cuda  # noqa: E402
from benchmarks.harness import Effort, Row, Samples, Spread, at_least, at_most, interleave  # noqa: E402
from benchmarks.session import Session  # noqa: E402

EFFORT = Effort(sample=0.010, budget=1.0, rounds=(3, 20))


class FakeClock:
    """Time passes only inside the functions made here; `speed` maps the time to how quick the machine is."""

    def __init__(self, speed=lambda now: 1.0):
        self.now, self.speed, self.calls = 0.0, speed, []

    def __call__(self) -> float:
        return self.now

    def function(self, name: str, seconds: float):
        def call():
            self.calls.append(name)
            self.now += seconds / self.speed(self.now)

        return call


def measure(clock: FakeClock, effort: Effort = EFFORT, **seconds: float) -> Samples:
    return interleave({name: clock.function(name, s) for name, s in seconds.items()}, effort, Cpu(clock))


def test_ratio_of_fake_times_is_exact():
    samples = measure(FakeClock(), ours=0.001, peer=0.050)
    assert samples.ratio("peer", "ours").median == pytest.approx(50)
    assert samples.difference("peer", "ours").median == pytest.approx(0.049)
    assert samples.medians() == pytest.approx({"ours": 0.001, "peer": 0.050})


def test_ratio_survives_a_machine_that_slows_down():
    clock = FakeClock(speed=lambda now: 1.0 if now < 0.4 else 0.25)
    samples = measure(clock, ours=0.010, peer=0.020)
    assert max(samples.seconds["ours"]) == pytest.approx(4 * min(samples.seconds["ours"]))
    assert samples.ratio("peer", "ours").median == pytest.approx(2)


def test_short_functions_are_repeated_to_fill_a_sample_and_long_ones_are_not():
    clock = FakeClock()
    rounds = len(measure(clock, short=0.001, long=0.2).seconds["short"])
    assert clock.calls.count("short") == 4 + 11 * rounds  # warm-up, then an untimed call and ten timed ones
    assert clock.calls.count("long") == 2 + rounds


@pytest.mark.parametrize(("seconds", "rounds"), [(0.9, 3), (0.1, 10), (0.001, 20)])
def test_rounds_keep_to_the_budget(seconds, rounds):
    assert len(measure(FakeClock(), only=seconds).seconds["only"]) == pytest.approx(rounds, abs=1)


def test_order_rotates():
    clock = FakeClock()
    measure(clock, Effort(0.01, 1.0, (3, 3)), a=0.5, b=0.5)
    assert clock.calls[4:] == ["a", "b", "b", "a", "a", "b"]


class FakeGpu:
    """A GPU whose time passes in the functions of a clock and when caches are emptied; `log` is what it was
    asked for. Functions named in `stubborn` cannot be captured."""

    def __init__(self, clock=None, stubborn=(), kernels=True):
        self.clock, self.stubborn, self.kernels = clock or FakeClock(), stubborn, kernels
        self.log, self.recorded, self.waited = [], 0, 0

    def has_kernel(self, operator):
        return self.kernels

    def capture(self, call):
        before = len(self.clock.calls)
        call()
        if set(self.clock.calls[before:]) & set(self.stubborn):
            raise RuntimeError("it waits for the GPU\nwhich no capture allows")

        def replay():
            self.log.append("replay")
            call()

        return replay

    def flush(self):
        self.log.append("flush")
        self.clock.now += 7

    def event(self):
        self.log.append("event")
        self.recorded += 1
        return FakeEvent(self, self.clock.now, self.recorded)

    def wait(self):
        self.waited = self.recorded

    def describe(self):
        return {"name": "fake"}


class FakeEvent:
    def __init__(self, gpu, now, number):
        self.gpu, self.now, self.number = gpu, now, number

    def elapsed_time(self, end):
        assert self.gpu.waited >= end.number > self.number, "read before the GPU got there"
        return 1e3 * (end.now - self.now)


def test_on_a_gpu_every_repetition_is_a_replay_between_events_after_a_flush():
    gpu = FakeGpu()
    call, remark = Cuda(gpu).ready(gpu.clock.function("ours", 0.25))
    assert remark == "" and gpu.log == []
    assert Cuda(gpu).seconds(call, 3) == pytest.approx(0.25)  # and nothing of the flushes
    assert gpu.log == ["flush", "event", "replay", "event"] * 3


def test_ratios_on_a_gpu_are_those_of_events():
    gpu = FakeGpu()
    functions = {name: gpu.clock.function(name, s) for name, s in (("ours", 0.001), ("peer", 0.050))}
    samples = interleave(functions, EFFORT, Cuda(gpu))
    assert samples.ratio("peer", "ours").median == pytest.approx(50) and samples.remarks == {}
    assert samples.medians() == pytest.approx({"ours": 0.001, "peer": 0.050})


def test_what_cannot_be_captured_is_called_and_said():
    gpu = FakeGpu(stubborn=("peer",))
    functions = {name: gpu.clock.function(name, 0.01) for name in ("ours", "peer")}
    session = Session(quick=True, quiet=True, device=Cuda(gpu))
    samples = session.time("case", functions)
    assert samples.remarks == {"peer": "not in a CUDA graph (RuntimeError: it waits for the GPU)"}
    assert session.notes == ["case: peer not in a CUDA graph (RuntimeError: it waits for the GPU)"]
    assert samples.ratio("peer", "ours").median == pytest.approx(1)
    assert gpu.log.count("event") > 2 * gpu.log.count("replay") > 0


def test_floors_are_those_of_processors():
    assert Session(device=Cuda(FakeGpu())).held(at_least(2), isa="") is None
    assert Session().held(at_least(2), isa="") == at_least(2)
    assert Session().held(at_least(2), isa="none of ours") is None


class HostClock:
    """That of the machine, in the place of a fake one."""

    calls = ()
    now = property(lambda self: time.perf_counter(), lambda self, value: None)


class HostGpu(Cuda):
    """A GPU that is the CPU."""

    name, share = "cpu", 0.002

    def __init__(self, kernels=True):
        super().__init__(FakeGpu(HostClock(), kernels=kernels))

    def missing(self):
        return []


def test_spread_is_median_and_quartiles():
    assert Spread.of([5, 1, 4, 2, 3]) == Spread(3, 2, 4, 5)
    assert Spread.of([7]) == Spread(7, 7, 7, 1)


def test_cost_per_unit_of_work():
    samples = Samples({"small": [1.0, 2.0], "large": [30.0, 60.0]}).per({"small": 10, "large": 100})
    assert samples.ratio("large", "small").median == pytest.approx(3)


@pytest.mark.parametrize(
    ("floor", "value", "missed"),
    [(at_least(20), 25, 0), (at_least(20), 15, 0.25), (at_most(2), 1.5, 0), (at_most(2), 3, 0.5)],
)
def test_floor_says_by_how_much_it_is_missed(floor, value, missed):
    assert floor.missed_by(value) == pytest.approx(missed)
    assert floor.met(value) == (missed == 0)


def row(median: float = 15.0, floor=None) -> Row:
    return Row("case", "peer / clebsch", Spread(median, 14.0, 16.0, 9), "x", floor, {"clebsch": 1e-3})


def test_table_and_summary_name_what_was_missed():
    rows = [row(), row(floor=at_least(20)), row(floor=at_least(10))]
    lines = report.table("title", rows).splitlines()
    assert lines[0] == "title" and len(lines) == 6
    assert lines[4].endswith(">= 20  missed by 25 %") and lines[5].endswith("met")
    assert report.summary(rows) == "1 of 2 floors met\n  case, peer / clebsch: missed by 25 %"


def test_caveats_go_with_the_numbers():
    assert report.caveats(False, 0.4) == []
    quick, busy = report.caveats(True, 3.2)
    assert quick.startswith("quick") and "3.2" in busy
    assert report.summary([row()], [quick]).splitlines() == ["0 of 0 floors met", quick]


def test_json_round_trip(tmp_path):
    path = tmp_path / "new" / "case.json"
    report.write_json(path, "case", {"cpu": "any"}, [row(floor=at_least(20)), row()])
    content = json.loads(path.read_text())
    assert content["name"] == "case" and content["machine"] == {"cpu": "any"}
    held, free = content["rows"]
    assert held["floor"] == {"value": 20, "sense": "at least"} and held["met"] is False
    assert held["quartiles"] == [14.0, 16.0] and held["rounds"] == 9 and held["seconds"] == {"clebsch": 1e-3}
    assert free["floor"] is None and free["met"] is None and free["missed_by"] is None


def test_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "case.png", "title", [row(floor=at_least(20)), row()])
    assert (tmp_path / "case.png").stat().st_size > 1000


def test_results_of_other_settings_have_other_names():
    assert stem("limits", parse(["limits"])) == "limits"
    assert stem("limits", parse(["limits", "--isa", "avx2", "--threads", "2", "--quick"])) == (
        "limits-avx2-threads2-quick"
    )
    chosen = parse(["limits", "--only", "mm"])
    assert stem("limits", chosen) == "limits-part"
    # What ended early overwrites neither.
    assert stem("limits", parse(["limits"]), complete=False) == "limits-ended"
    assert stem("limits", chosen, complete=False) == "limits-part-ended"


def test_only_selects_cases():
    assert Session().wants("anything")
    assert Session(only="mace*with backward").wants("mace-medium, with backward")
    assert not Session(only="forward").wants("mace-medium, with backward")


def test_mace_medium_has_its_ten_paths():
    problem = problems.model("mace-medium")
    assert problems.weight_numel(problem) == 1280
    degrees = sorted((i, j, out) for i, j, out, *_ in problem.instructions)
    assert len(degrees) == 10 and problem.irreps_out.count("128x") == 10
    assert [out for _, _, out, *_ in problem.instructions] == list(range(10))


def test_nequip_keeps_outputs_among_its_hidden_irreps():
    problem = problems.model("nequip-32-both")
    assert {block.split("x")[1] for block in problem.irreps_out.split("+")} == {
        "0o",
        "0e",
        "1o",
        "1e",
        "2o",
        "2e",
    }


def test_flops_of_a_linear_layer_are_those_of_its_matrices():
    case = linear.Case("case", "2x0e+3x1o+5x1o", "7x1o+1x0e+4x2e")
    assert linear._flops(case, 10) == 2 * 10 * (2 * 1 + 3 * 7 * 3 + 5 * 7 * 3)
    mixed = linear.cases()[2]
    assert mixed.irreps_in == problems.model("mace-medium").irreps_out and len(linear._matrices(mixed)) == 10


def test_layers_of_species_are_compared_with_e3nn_and_the_product():
    rows = list(linear.rows(Session(quick=True, quiet=True, only="species, 128x l<=1, 108 rows, forward")))
    assert [row.quantity for row in rows] == ["e3nn / clebsch", "product / clebsch"]


def test_rates_of_a_linear_layer_are_shares_of_a_matrix_product():
    rows = list(linear.rows(Session(quick=True, quiet=True, only="128x l<=3, rate")))
    assert [row.name.rpartition(", ")[2] for row in rows] == ["forward", "grad_x", "grad_weight"]
    for row in rows:
        assert row.seconds.keys() == {"matrix product", "forward", "grad_x", "grad_weight"}
        assert row.quantity == "share of the matrix-product rate" and row.spread.median > 0


def test_multiply_adds_counts_the_cheapest_order():
    scalar = problems.channelwise("scalar", "test", "5x0e", "1x0e", "0e")
    assert problems.multiply_adds(scalar) == 1 + 5 * (1 + 1)
    cross = problems.channelwise("cross", "test", "5x1o", "1x1o", "1e")
    assert problems.multiply_adds(cross) == 6 + 5 * (3 + 6)


@pytest.mark.parametrize(
    "make", [problems.local_edges, lambda n: problems.random_edges(n, problems.DEGREE * n)]
)
@pytest.mark.parametrize("num_nodes", [1, 25, 300])
def test_graphs_are_sorted_and_in_range(make, num_nodes):
    edges = make(num_nodes)
    receivers, senders = edges.receivers.tolist(), edges.senders.tolist()
    assert edges.count == problems.DEGREE * num_nodes == len(receivers)
    assert all(a <= b for a, b in itertools.pairwise(receivers)) and set(receivers) == set(range(num_nodes))
    assert min(senders) >= 0 and max(senders) < num_nodes


# The shortest case of each benchmark, and what it times beside clebsch.
SHORTEST = {
    "limits": ("matrix product", {"mm"}),
    "spherical_harmonics": ("l_max 1, forward", {"clebsch", "e3nn", "sphericart", "write", "write new"}),
    "tensor_product": ("scalar output uvw, forward", {"clebsch", "e3nn"}),
    "convolution": ("nequip-32-both, forward", {"clebsch", "clebsch ir_mul", "e3nn"}),
    "radial_convolution": ("nequip-M, forward", {"clebsch", "two calls", "e3nn"}),
    "linear": ("16x l<=2, 21 rows, forward", {"clebsch", "e3nn"}),
    "symmetric_contraction": ("l <= 1, correlation 4, forward", {"clebsch", "torch"}),
    "layers": ("21 atoms, 300 edges, 16x l<=2, forward", {"clebsch", "e3nn", "one edge"}),
    "drop_in": ("Gate, forward", {"clebsch", "e3nn"}),
    "scaling": ("threads, mace-medium, forward", {"one", "two"}),
    "memory": ("convolution, 4,000 edges", set()),
    "published": (
        "OpenEquivariance uvw, tetris-poly-2, float64, forward",
        {"clebsch", "clebsch ir_mul", "e3nn"},
    ),
}
# Where they are installed.
OPTIONAL = {peer.name for peer in peers.PEERS} - {"e3nn", "sphericart"}


def run_benchmarks(*arguments):
    """Through the command line, in a process of its own: it sets threads and environment."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Those of `accelerate` need the packages whose models they accelerate.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "accelerate"])
def test_quick_run_writes_a_complete_result(name, tmp_path):
    pytest.importorskip("e3nn")
    if name == "spherical_harmonics":
        pytest.importorskip("sphericart.torch")
    if name == "memory" and not memory.CLEAR.exists():
        pytest.skip("no /proc/self/clear_refs")
    if name == "scaling" and os.cpu_count() == 1:
        pytest.skip("one core")
    case, timed = SHORTEST[name]
    arguments = [name, "--quick", "--only", case, "--results", str(tmp_path)]
    assert "floors met\n" in run_benchmarks(
        "benchmarks", *arguments
    )  # how many are held depends on the machine
    content = json.loads((tmp_path / f"{name}-quick-part.json").read_text())
    machine = content["machine"]
    assert machine["threads"] == 1 and machine["isa"] and machine["versions"]["e3nn"] and machine["date"]
    assert machine["command"] == " ".join(["python -m benchmarks", *arguments])
    assert content["rows"]
    for entry in content["rows"]:
        assert entry["median"] > 0 or name == "memory"  # of which there may be no more than before
        assert (entry["floor"] is None) == (entry["met"] is None)
        assert set(entry["seconds"]) - OPTIONAL == timed


ON_GPU = (
    "limits",
    "spherical_harmonics",
    "tensor_product",
    "convolution",
    "radial_convolution",
    "linear",
    "symmetric_contraction",
    "published",
)


@pytest.mark.parametrize("name", ON_GPU)
def test_quick_run_on_a_gpu(name, tmp_path):
    """All of the path but the GPU: its memory is the CPU's, its events are a clock's."""
    pytest.importorskip("e3nn")
    case, timed = SHORTEST[name]
    arguments = [name, "--quick", "--device", "cuda", "--only", case, "--results", str(tmp_path)]
    device = HostGpu()
    assert main(arguments, device) == 0
    content = json.loads((tmp_path / f"{name}-cuda-quick-part.json").read_text())
    assert content["machine"]["gpu"] == {"name": "fake"} and "openequivariance" in content["machine"]["peers"]
    assert content["rows"] and all(entry["floor"] is None for entry in content["rows"])
    assert all(set(entry["seconds"]) - OPTIONAL == timed for entry in content["rows"])
    log = device.gpu.log
    assert log.count("replay") > log.count("flush") == log.count("event") // 2 > 0  # one replay warms up


@pytest.mark.parametrize("name", [name for name in ON_GPU if name != "limits"])
def test_all_operands_go_to_the_device(name, monkeypatch, tmp_path):
    """torch refuses to mix those of its device without memory with those of the CPU."""
    pytest.importorskip("e3nn")
    # What looks at numbers, of which there are none.
    monkeypatch.setattr(graph, "_check_range", lambda *_: None)
    monkeypatch.setattr(symmetric_contraction, "species_of", lambda one_hot: one_hot.argmax(1))
    monkeypatch.setattr(steps, "difference", lambda ours, theirs: 0.0)
    monkeypatch.setattr(published, "difference", lambda ours, theirs: 0.0)
    device = HostGpu()
    device.name = "meta"
    seen = []
    monkeypatch.setattr(device.gpu, "capture", lambda call: seen.append(call()) or call)
    for step in steps.STEPS:
        case = SHORTEST[name][0].replace("forward", step)
        assert main([name, "--quick", "--only", case, "--results", str(tmp_path)], device) == 0
    results = [t for found in seen for t in (found if isinstance(found, (tuple, list)) else [found])]
    assert results and all(t is None or t.device.type == "meta" for t in results)


def test_what_is_missing_is_said_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(backend, "cuda_missing", lambda: ["not built", "torch has no CUDA"])
    for module in ("tensor_product", "published"):
        with pytest.raises(SystemExit) as stop:
            main([module, "--device", "cuda", "--results", str(tmp_path)])
        assert stop.value.code == "benchmarks: --device cuda does not run here: not built; torch has no CUDA"
    assert not list(tmp_path.iterdir())


def test_benchmarks_that_have_no_kernel_for_gpus_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["linear", "--results", str(tmp_path)], HostGpu(kernels=False))
    lacking = "linear, linear_grad_x, linear_grad_weight: no kernel for GPUs"
    assert stop.value.code == f"benchmarks: linear does not run on cpu: {lacking}"
    with pytest.raises(SystemExit) as stop:
        main(["layers"], HostGpu())
    assert stop.value.code == "benchmarks: layers does not run on cpu: it measures the processor"
    # Those that do are run; without a kernel that is what the GPU can do.
    assert (
        main(["all", "--quick", "--only", "matrix product", "--results", str(tmp_path)], HostGpu(False)) == 0
    )
    assert "convolution does not run on cpu: graph_order, convolution," in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["limits-quick-part.json"]


def test_a_peer_that_differs_or_fails_has_that_beside_its_numbers(monkeypatch):
    e3nn = pytest.importorskip("e3nn.o3")

    def wrong(problem, shared, device):
        layer = e3nn.TensorProduct(*problem.arguments, shared_weights=shared, internal_weights=False)
        return peers.Call(lambda x, y, weight: 1.5 * layer(x, y, weight))

    def fails(problem, shared, device):
        raise ValueError("no such mode\nas this")

    there = [
        peers.Peer("wrong", "e3nn", "e3nn", wrong),
        peers.Peer("fails", "e3nn", "e3nn", fails),
        peers.Peer("slow", "e3nn", "e3nn", peers.E3NN.tensor_product, kernels="its_kernels"),
        peers.Peer("absent", "a-package", "a_module_that_nobody_has", fails),
    ]
    monkeypatch.setattr(peers, "PEERS", there)
    session = Session(quick=True, quiet=True, only="uvw, tetris-poly-2, float32, with backward")
    rows = list(published.rows(session))
    assert session.notes == ["not compared, not installed: pip install a-package"]
    assert {row.quantity: report.verdict(row) for row in rows} == {
        "clebsch, a row": "fails: ValueError: no such mode",
        "clebsch ir_mul / clebsch": "",
        "wrong / clebsch": "differs from clebsch by 0.33 of the norm",
        "slow / clebsch": "without its kernels, its_kernels",
    }
    assert all(row.detail["failed"] == {"fails": "ValueError: no such mode"} for row in rows)


def test_a_peer_that_rounds_to_float32_differs_in_float64(monkeypatch):
    pytest.importorskip("e3nn.o3")

    def rounds(problem, shared, device):
        layer = peers.e3nn_layer(problem, shared, device)
        return peers.Call(lambda x, y, weight: layer(x, y, weight.float().to(weight.dtype)))

    monkeypatch.setattr(peers, "PEERS", [peers.E3NN, peers.Peer("rounds", "e3nn", "e3nn", rounds)])
    verdicts = {}
    for dtype in ("float32", "float64"):
        session = Session(quick=True, quiet=True, only=f"uvw, tetris-poly-2, {dtype}, forward")
        verdicts[dtype] = {row.quantity: report.verdict(row) for row in published.rows(session)}
    same = dict.fromkeys(("clebsch, a row", "clebsch ir_mul / clebsch", "e3nn / clebsch"), "")
    assert verdicts["float32"] == same | {"rounds / clebsch": ""}
    said = verdicts["float64"].pop("rounds / clebsch")
    assert verdicts["float64"] == same and said.startswith("differs from clebsch by ")
    assert torch.get_default_dtype() == torch.float32


CASE = "OpenEquivariance uvw, tetris-poly-2, float32, "


def run_published(folder, ended=""):
    arguments = ["published", "--quick", "--device", "cuda", "--only", f"{CASE}*", "--results", str(folder)]
    try:
        return main(arguments, HostGpu())
    finally:
        (file,) = folder.iterdir()
        assert file.name == f"published-cuda-quick-part{ended}.json"


def test_a_case_that_fails_leaves_the_others(monkeypatch, tmp_path):
    """Ours, which e3nn is compared with: out of memory in one step of three."""
    pytest.importorskip("e3nn")
    own = published.results

    def results(step, function, inputs):
        if step == steps.BACKWARD:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return own(step, function, inputs)

    monkeypatch.setattr(published, "results", results)
    assert run_published(tmp_path) == 0
    content = json.loads((tmp_path / "published-cuda-quick-part.json").read_text())
    said = f"{CASE}{steps.BACKWARD}: clebsch failed: OutOfMemoryError: CUDA out of memory."
    assert said in content["caveats"]
    assert {entry["name"] for entry in content["rows"]} == {
        f"{CASE}{step}" for step in steps.STEPS if step != steps.BACKWARD
    }


def test_what_was_measured_before_a_run_ended_is_written(monkeypatch, tmp_path):
    pytest.importorskip("e3nn")
    own = published._compare

    def compare(session, name, case, step):
        if step == steps.BACKWARD:
            raise KeyboardInterrupt
        yield from own(session, name, case, step)

    monkeypatch.setattr(published, "_compare", compare)
    with pytest.raises(KeyboardInterrupt):
        run_published(tmp_path, "-ended")
    content = json.loads((tmp_path / "published-cuda-quick-part-ended.json").read_text())
    assert "ended early: KeyboardInterrupt" in [note.rstrip(": ") for note in content["caveats"]]
    assert {entry["name"] for entry in content["rows"]} == {f"{CASE}{steps.FORWARD}"}


COMPARED = [published.IR_MUL, *(peer for peer in peers.PEERS if peer not in (peers.E3NN, peers.SPHERICART))]


@pytest.mark.parametrize("peer", COMPARED, ids=lambda peer: peer.name)
@pytest.mark.parametrize("noun", ["tensor_product", "convolution"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_peers_compute_what_we_do(peer, noun, dtype):
    """Their order of components and weights, in the forward pass and both derivatives."""
    device = "cuda" if peer.module == "openequivariance" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")  # without CUDA it cannot even be imported
    pytest.importorskip(peer.module, exc_type=ImportError)
    if getattr(peer, noun) is None:
        pytest.skip("not offered")
    both = "4x0o+4x0e+4x1o+4x1e+2x2o+2x2e"
    kept = "0o+0e+1o+1e+2o+2e"
    cases = [problems.channelwise("uvu", "other", both, "1x0e+1x1o+1x2e", kept)]
    edges = problems.symmetric_edges(10, 4, True)
    if noun == "tensor_product":
        cases.append(problems.fully_connected("uvw", both, "1x0e+1x1o", both))
    for problem in (dataclasses.replace(case, dtype=dtype) for case in cases):
        # Both on one device: cotangents are made there, and others elsewhere.
        if noun == "convolution":
            mine, theirs = (make(problem, edges.to(device)) for make in (convolution.ours, peer.convolution))
        else:
            mine = peers.E3NN.tensor_product(problem, False, device)
            theirs = peer.tensor_product(problem, False, device)
        inputs = problems.operands(problem, 10 if noun == "convolution" else edges.count, edges.count)
        there = [operand.to(device) for operand in inputs]
        for step in steps.STEPS:
            expected, found = steps.results(step, mine, there), steps.results(step, theirs, there)
            bound = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
            assert steps.difference(expected, found) < bound


@pytest.mark.parametrize("is_local", [False, True])
@pytest.mark.parametrize(("num_nodes", "degree"), [(8, 6), (9, 8), (100, 40), (1000, 158)])
def test_symmetric_graphs(num_nodes, degree, is_local):
    edges = problems.symmetric_edges(num_nodes, degree, is_local)
    pairs = list(zip(edges.receivers.tolist(), edges.senders.tolist(), strict=True))
    assert pairs == sorted(set(pairs)) and len(pairs) == num_nodes * degree
    assert {(b, a) for a, b in pairs} == set(pairs) and all(a != b for a, b in pairs)


def test_published_problems():
    """Paths and components of two of them as their authors list them; all can be made."""
    cases = {case.name: case for case in published.cases()}
    sevennet = cases["FlashTP, sevennet-0"].problem
    assert sevennet.irreps_out == (
        "128x0e+64x0e+32x0e+128x1e+64x1e+64x1e+64x1e+32x1e+32x1e+128x2e+64x2e+64x2e+32x2e+32x2e+32x2e"
    )
    assert {path[:3] for path in sevennet.instructions} >= {(0, 1, 3), (1, 1, 5), (2, 1, 13), (2, 2, 14)}
    assert len(cases["FlashTP, nequip-l1, third"].problem.instructions) == 8
    for case in cases.values():
        assert problems.weight_numel(case.problem) > 0


# Paths and weights that OpenEquivariance's constructors give.
CONSTRUCTED = {
    "uvu, mace-large": (17, 2176),
    "uvu, mace-medium": (8, 1024),
    "uvu, nequip-lips": (30, 960),
    "uvu, nequip-revmd17-aspirin": (10, 640),
    "uvu, nequip-revmd17-toluene": (30, 1920),
    "uvu, nequip-revmd17-benzene": (68, 4352),
    "uvu, nequip-water": (10, 320),
    "uvu, nequix-mp-1, first": (4, 356),
    "uvu, nequix-mp-1": (23, 1312),
    "uvu, nequix-mp-1, last": (4, 256),
    "uvu, sevennet-l3i5, first": (4, 512),
    "uvu, sevennet-l3i5": (34, 1760),
    "uvu, sevennet-l3i5, last": (4, 256),
    "uvw, tetris-poly-1": (24, 648),
    "uvw, tetris-poly-2": (5, 664),
    "uvw, DiffDock-L=1": (10, 6928),
    "uvw, DiffDock-L=2": (12, 7128),
    "uvw, e3tools-conv": (4, 7680),
    "uvw, e3tools-transformer": (4, 6400),
    "tetris, layer 0 sc": (1, 150),
    "tetris, layer 0 lin1": (1, 1),
    "tetris, layer 0 lin2": (3, 250),
    "tetris, layer 0 alpha": (1, 1),
    "tetris, layer 1 sc": (3, 17_500),
    "tetris, layer 1 lin1": (3, 7_500),
    "tetris, layer 1 lin2": (5, 67_500),
    "tetris, layer 1 alpha": (1, 150),
    "tetris, layer 2 sc": (5, 22_500),
    "tetris, layer 2 lin1": (5, 12_500),
    "tetris, layer 2 lin2": (6, 97_500),
    "tetris, layer 2 alpha": (1, 150),
    "tetris, layer 3 sc": (2, 350),
    "tetris, layer 3 lin1": (6, 15_000),
    "tetris, layer 3 lin2": (2, 1_050),
    "tetris, layer 3 alpha": (1, 150),
    **{f"roofline, {a} x {b} to {c}": (1, 128) for a, b, c in published.ROOFLINE},
    **{f"conv, mace-large, {graph}": (17, 2176) for graph in published.GRAPHS},
}


def test_problems_have_the_paths_and_weights_that_were_published():
    cases = {case.name: case for case in published.cases() if case.name.startswith("OpenEquivariance")}
    assert CONSTRUCTED == {
        name.removeprefix("OpenEquivariance "): (
            len(case.problem.instructions),
            problems.weight_numel(case.problem),
        )
        for name, case in cases.items()
    }
    shared = {name.split(", ")[1] for name, case in cases.items() if case.shared_weights and "uvw" in name}
    assert shared == {"tetris-poly-1", "tetris-poly-2", "e3tools-transformer"}


def test_what_is_kept_is_a_set_of_irreps():
    """Nequix lists one block for each path, with its multiplicity, in an order of its own; only which irreps
    occur matters. Paths by hand: degrees of a triangle, natural parity."""
    listed = (
        "128x0e+128x1o+128x2e+128x3o+64x1o+64x0e+64x2e+64x1o+64x3o+64x2e+32x2e+32x1o+32x3o+32x0e+32x2e+32x1o"
        "+32x3o+32x3o+32x2e+32x1o+32x3o+32x0e+32x2e"
    )
    node, edge, kept = published.UVU["nequix-mp-1"]
    problem = problems.channelwise("nequix", "other", node, edge, kept)
    assert problem == problems.channelwise("nequix", "other", node, edge, listed)
    assert sorted(problem.irreps_out.split("+")) == sorted(listed.split("+"))
    degrees, muls = range(4), (128, 64, 32, 32)
    by_hand = [
        (one, two, three)
        for one, two, three in itertools.product(degrees, repeat=3)
        if abs(one - two) <= three <= one + two and (one + two + three) % 2 == 0
    ]
    found = [int(block.split("x")[1][0]) for block in problem.irreps_out.split("+")]
    assert sorted((i, j, found[k]) for i, j, k, *_ in problem.instructions) == by_hand
    assert problems.weight_numel(problem) == sum(muls[one] for one, _, _ in by_hand)


def test_published_lists_have_the_sizes_that_the_documentation_says():
    titles = [title for case in published.cases() for title, _ in case.titles()]
    assert len(set(titles)) == len(titles)
    assert f"{len(titles)} cases" in (REPOSITORY / "docs" / "benchmarks.md").read_text()
    lists = Counter(title.partition(",")[0] for title in titles if "float32" in title)
    half = {f"OpenEquivariance {name}": count for name, count in (("uvu", 39), ("uvw", 18), ("conv", 9))}
    assert lists == half | {"OpenEquivariance tetris": 48, "OpenEquivariance roofline": 16, "FlashTP": 102}
    assert Counter(title.partition(",")[0] for title in titles if "float64" in title) == half


@pytest.mark.parametrize(
    ("name", "step", "rows"),
    [
        ("uvu, nequip-water", steps.BACKWARD, 500),
        ("uvu, nequip-water", steps.DOUBLE, 200),
        ("roofline, 1 x 1 to 1", steps.FORWARD, 2_000),
    ],
)
def test_published_rows(name, step, rows):
    """A hundredth of them."""
    device = HostGpu()
    device.share = 0.01
    for case in published.cases():
        if case.name == f"OpenEquivariance {name}":
            _, _, inputs = published._functions(Session(device=device), case, step)
            assert [len(operand) for operand in inputs] == [rows] * 3
            assert {operand.dtype for operand in inputs} == {case.problem.dtype}


@pytest.mark.parametrize(
    "name",
    [
        "uvu, nequix-mp-1",
        "uvu, nequip-water",
        "uvu, sevennet-l3i5, last",
        "uvw, e3tools-conv",
        "uvw, e3tools-transformer",
        "tetris, layer 0 alpha",
        "tetris, layer 1 sc",
        "roofline, 7 x 7 to 7",
        "conv, mace-large, DHFR",
    ],
)
def test_e3nn_computes_what_we_do_of_published_problems(name):
    pytest.importorskip("e3nn")
    device = HostGpu()
    device.share = 1e-4
    for case in published.cases():
        if case.name == f"OpenEquivariance {name}":
            for _, step in case.titles():
                mine, theirs, inputs = published._functions(Session(device=device), case, step)
                expected = steps.results(step, mine, inputs)
                for peer in (peers.E3NN, published.IR_MUL):
                    error = steps.difference(expected, steps.results(step, theirs[peer](), inputs))
                    assert error <= steps.TOLERANCE[case.problem.dtype]


def test_peers_that_fail_are_in_the_result(monkeypatch, tmp_path):
    """What failed and why; the others are measured."""
    o3 = pytest.importorskip("e3nn.o3")
    x = torch.randn(5, 8)

    class Fake(types.ModuleType):
        CASES = {"small": Case(), "of a molecule": Case(atoms=9)}

        @staticmethod
        def build(name, dtype):
            model = o3.Linear("2x0e + 2x1o", "2x0e + 2x1o").to(dtype)
            return Problem(
                model, lambda model: model(x.to(dtype)), lambda model: model(x.to(dtype)), None, 20
            )

        @staticmethod
        def peers(problem):
            return {"other": lambda: x.sum()}

    def compiled(model):
        def call(x):
            raise ValueError("cannot trace\nthis model")

        return call

    monkeypatch.setitem(sys.modules, "benchmarks.clients.fake", Fake("benchmarks.clients.fake"))
    monkeypatch.setattr(torch, "compile", compiled)
    session = Session(quick=True, quiet=True, compile=True, client="fake")
    report.write_json(tmp_path / "rows.json", "accelerate", {}, list(accelerate.rows(session)))
    found = {}
    for entry in json.loads((tmp_path / "rows.json").read_text())["rows"]:
        found.setdefault(entry["name"], []).append((entry["quantity"], entry["detail"].get("failed")))
    failed = {"torch.compile": "ValueError: cannot trace"}
    stock, other = ("stock / clebsch", None), ("other / clebsch", failed)
    assert sorted(found["small, float32: energy and forces"]) == [other, ("stock / clebsch", failed)]
    assert found["small, float32: training step"] == [("stock / clebsch", failed)]
    for name in ("small, float64", "of a molecule, float32", "of a molecule, float64"):
        assert [found[f"{name}: {part}"] for part in ("energy and forces", "training step")] == [[stock]] * 2


def test_a_model_that_fails_itself_is_no_result():
    def fail():
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        accelerate._that_run(Session(quiet=True), {"stock": fail, "clebsch": fail})


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="no /proc/self/clear_refs")
@pytest.mark.parametrize("operator", memory.OPERATORS)
def test_operators_allocate_little_beyond_their_results(operator):
    """58 MB are the Jacobian of these harmonics, 16 the gathered rows of x, more the messages, 41 the
    weights that a radial convolution makes, and 65 a copy of the features of a linear layer."""
    rows = 40_000 if operator.startswith("spherical_harmonics") else 8_000
    assert float(run_benchmarks("benchmarks.memory", operator, str(rows))) <= memory.MEGABYTES


def test_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["nothing"])
    message = capsys.readouterr().err
    assert all(name in message for name in NAMES)


@pytest.mark.parametrize("arguments", [["accelerate"], ["linear", "--client", "mace"]])
def test_models_are_those_of_a_client(arguments, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "accelerate needs --client, and no other benchmark takes it" in capsys.readouterr().err
