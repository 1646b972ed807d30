"""Which kernels layers and accelerated models take on a GPU, decided without one; with ``pytest --emulated``
those kernels run.

What each kernel computes: the tests of its noun. On a GPU: tests/gpu.
"""

import contextlib
from importlib import metadata
from pathlib import Path

import e3nn.nn
import e3nn.o3
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import clebsch
from another_device import WAITS, pretend_built, take_cpu_for_gpu, what_runs
from clebsch import Graph, backend, explain, nn, o3
from clebsch.algebra.plan import ProductPlan
from clebsch.convert.e3nn import convolve_edges
from clebsch.convert.radial import RadialWeights
from clebsch.e3nn.operands import refused
from clebsch.ops import dispatch
from clebsch.ops.edge_product import edge_product
from clebsch.ops.tensor_product import tensor_product
from layer_comparison import assert_same_function

NOUNS = (
    *("spherical_harmonics", "tensor_product", "convolution", "radial_convolution", "edge_product"),
    *("linear", "gate", "silu", "symmetric_contraction"),
)
# docs/triton.md
OF_TRITON = {"spherical_harmonics", "tensor_product", "convolution", "edge_product"}


def triton_is_there():
    try:
        return bool(metadata.version("triton"))
    except metadata.PackageNotFoundError:
        return False


LOAD_CUDA = backend._load_cuda.__wrapped__  # before a fixture takes its place
DEVICES_MISSING = backend._devices_missing.__wrapped__
has_triton = pytest.mark.skipif(not triton_is_there(), reason="Triton is not installed")


pytestmark = pytest.mark.usefixtures("float64_by_default")


@pytest.fixture
def nothing(monkeypatch):
    """No kernels for GPUs, whatever was built here."""
    monkeypatch.setattr(backend, "_load_cuda", lambda: "not built")
    backend._triton.take_away()
    yield
    monkeypatch.undo()
    backend.select("auto")


@pytest.fixture
def compiled(nothing, monkeypatch):
    """The compiled kernels are as if they were there."""
    pretend_built(monkeypatch)


@pytest.fixture
def triton(nothing):
    """Triton's kernels alone."""
    backend._triton.put_in_place()


# The one place that says what there is


def of(device):
    return {noun: backend.backend_of(noun, device) for noun in NOUNS}


def test_the_cpu_has_all():
    assert of("cpu") == dict.fromkeys(NOUNS, "cpu")
    assert {backend.dtypes_of(noun, "cpu") for noun in NOUNS} == {("float32", "float64")}


def test_no_kernels(nothing):
    for device in ("cuda", "xpu", "meta", "mps"):
        assert of(device) == dict.fromkeys(NOUNS, "")
        assert {backend.dtypes_of(noun, device) for noun in NOUNS} == {()}
    assert backend.no_kernels("linear", "mps") == "kernels run on the CPU and on GPUs"
    assert backend.no_kernels("linear", "cuda") == "no kernel for it: the compiled ones are not built"
    assert backend.no_kernels("linear", "xpu") == "no kernel for it: Triton is not in use"


def test_compiled_kernels(compiled):
    assert of("cuda") == dict.fromkeys(NOUNS, "cuda")
    assert of("xpu") == of("meta") == dict.fromkeys(NOUNS, "")
    for noun in NOUNS:
        narrow = noun in backend.NARROW_ON_CUDA
        assert backend.dtypes_of(noun, "cuda") == backend.WIDE + backend.NARROW * narrow


@has_triton
def test_tritons_kernels(triton):
    for device in ("cuda", "xpu"):
        assert {noun for noun, runs in of(device).items() if runs} == OF_TRITON
        for noun in NOUNS:
            expected = backend.WIDE + backend.NARROW if noun in OF_TRITON else ()
            assert backend.dtypes_of(noun, device) == expected
    assert backend.no_kernels("linear", "cuda") == (
        "no kernel for it: the compiled ones are not built, and Triton's have no linear"
    )


@has_triton
def test_tritons_kernels_before_compiled_ones(triton, monkeypatch):
    pretend_built(monkeypatch)
    assert {noun for noun, runs in of("cuda").items() if runs == "triton"} == OF_TRITON
    assert {noun for noun, runs in of("cuda").items() if runs == "cuda"} == set(NOUNS) - OF_TRITON


def test_triton_in_place_and_not_installed(triton, monkeypatch):
    monkeypatch.setattr(backend, "_has_triton", lambda: False)
    assert of("cuda") == dict.fromkeys(NOUNS, "")
    assert backend.no_kernels("tensor_product", "cuda") == (
        "no kernel for it: the compiled ones are not built, and Triton is not installed"
    )


# What asks there


@contextlib.contextmanager
def autocast_on_gpu():
    """torch.autocast("cuda") is on where there is a GPU alone."""
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def fake(*shapes, dtype=torch.float32, device="cuda"):
    return [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]


def test_suits_kernels(compiled):
    with FakeTensorMode():
        (x,) = fake((3, 4))
        assert dispatch.suits_kernels("linear", x) and not dispatch.suits_kernels("linear", x.half())
        assert not dispatch.suits_kernels("linear", *fake((3, 4), device="xpu"))
        with autocast_on_gpu():
            assert not dispatch.suits_kernels("linear", x)
            assert dispatch.suits_kernels("linear", *fake((3, 4), device="cpu"))
        with torch.autocast("cpu"):
            assert dispatch.suits_kernels("linear", x)
        with torch.autograd.forward_ad.dual_level():
            assert not dispatch.suits_kernels("linear", x)


@has_triton
def test_suits_kernels_of_triton(triton):
    with FakeTensorMode():
        (x,) = fake((3, 4))
        assert not dispatch.suits_kernels("linear", x) and dispatch.suits_kernels("tensor_product", x)
        assert dispatch.suits_kernels("tensor_product", x.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_convolutions_of_models_that_are_stored_in_16_bits(compiled, dtype):
    """Their radial nets' last matrix is multiplied first: `radial_convolution` does not take 16 bits."""
    arguments = "8x0e", "1x0e", "8x0e", [(0, 0, 0, "uvu", True)]
    product = e3nn.o3.TensorProduct(*arguments, shared_weights=False, internal_weights=False)
    with FakeTensorMode():
        x, y, hidden, matrix = (one.to(dtype) for one in fake((4, 8), (6, 1), (6, 3), (3, 8)))
        nodes = torch.zeros(6, dtype=torch.int64, device=x.device)
        out = convolve_edges(product, x, y, RadialWeights(hidden, matrix), nodes, nodes, 4)
    assert out is not None and out.shape == (4, 8) and out.dtype == dtype


def test_refused(compiled):
    with FakeTensorMode():
        x, y = fake((3, 4), (3, 2))
        assert refused("tensor_product", {"x": x, "y": y}) is None
        known = "kernels take float32, float64, float16 or bfloat16, the same for all"
        reasons = {
            "x is on cuda:0 and y on cpu": (x, there(y, "cpu")),
            "x is on cuda:0 and y on cuda:1": (x, there(y, "cuda:1")),
            "x is on xpu:0: no kernel for it: Triton is not in use": fake((3, 4), (3, 2), device="xpu"),
            "x is on mps:0: kernels run on the CPU and on GPUs": fake((3, 4), (3, 2), device="mps"),
            f"dtypes are float32, float64: {known}": (x, y.double()),
            f"dtypes are int64, int64: {known}": (x.long(), y.long()),
        }
        for reason, (a, b) in reasons.items():
            assert refused("tensor_product", {"x": a, "y": b}) == reason
        with autocast_on_gpu():
            assert refused("tensor_product", {"x": x, "y": y}) == "autocast is on"
        with torch.autocast("cpu"):
            assert refused("tensor_product", {"x": x, "y": y}) is None


def test_refused_where_there_is_nothing(nothing):
    with FakeTensorMode():
        (x,) = fake((3, 4))
        assert refused("linear", {"x": x}) == (
            "x is on cuda:0: no kernel for it: the compiled ones are not built"
        )


def test_edges_meet_their_receivers_in_a_kernel(compiled):
    """Nothing is gathered."""
    plan = ProductPlan.parse("3x0e*1x0e->3x0e;mul_ir;0 0 0 uvu w 1.0")
    with FakeTensorMode():
        x, y, weight = fake((7, 3), (5, 1), (7, 3))
        graph = Graph(*torch.zeros(2, 7, dtype=torch.int64, device="cuda"), 5)
        with Recorder() as recorder:
            assert edge_product(x, y, weight, graph, plan).shape == (7, 3)
        assert recorder.names == {"graph_order", "edge_product"}
        assert edge_product(x.half(), y.half(), weight.half(), graph, plan).dtype == torch.float16


@has_triton
def test_dtypes_of_triton(triton):
    plan = ProductPlan.parse("3x0e*1x0e->3x0e;mul_ir;0 0 0 uvu w 1.0")
    with FakeTensorMode():
        x, y, weight = operands = fake((5, 3), (5, 1), (5, 3), dtype=torch.bfloat16)
        assert refused("tensor_product", {"x": x, "y": y}) is None
        assert refused("linear", {"x": x.float()}) == (
            "x is on cuda:0: no kernel for it: the compiled ones are not built, and Triton's have no linear"
        )
        graph = Graph(*torch.zeros(2, 5, dtype=torch.int64, device="cuda"), 5)
        assert tensor_product(*operands, plan).dtype == torch.bfloat16
        assert edge_product(x, y, weight, graph, plan).dtype == torch.bfloat16
        with pytest.raises(TypeError, match=r"^linear: x must be float32 or float64, got bfloat16$"):
            clebsch.ops.linear(x, *fake((3,), (0,), dtype=x.dtype), plan)


@pytest.mark.parametrize("hip, cuda, xpu", [("7.0", None, None), (None, None, "2025"), (None, "13.0", None)])
def test_compiled_kernels_are_for_one_vendor(hip, cuda, xpu, nothing, monkeypatch):
    """Under a torch for AMD's or Intel's GPUs they stay out of the way of Triton's."""
    for name, version in {"hip": hip, "cuda": cuda, "xpu": xpu}.items():
        monkeypatch.setattr(torch.version, name, version, raising=False)
    loaded = []
    monkeypatch.setattr(backend, "_library", Path)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: loaded.append(path.name))
    monkeypatch.setattr(backend, "_load_cuda", LOAD_CUDA)
    monkeypatch.setattr(backend, "_versions", lambda library: (13000, 13010, "90"))
    backend.load.__wrapped__()
    assert backend.runs_triton() is (cuda is None)
    if cuda is not None:
        assert loaded == ["_clebsch_torch.so", "_clebsch_cuda.so"]
        return
    assert loaded == ["_clebsch_torch.so"]
    said = f"built for NVIDIA's, and torch {torch.__version__} is for others"
    assert backend.cuda_missing()[0] == backend.backends()["cuda"] == said
    with pytest.raises(ImportError, match="kernels for GPUs are built for NVIDIA's"):
        backend.select("cuda")
    backend.select("auto")
    assert backend.runs_triton() and backend.backend_of("linear", "cuda") == ""


@pytest.fixture
def gpu(nothing, monkeypatch):
    """Compiled kernels and a device are there, both of which a test describes."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(backend, "_library", Path)
    monkeypatch.setattr(backend, "_load_cuda", LOAD_CUDA)
    monkeypatch.setattr(backend, "_devices_missing", DEVICES_MISSING)

    def describe(built=13000, driver=13000, architectures="80-real 90-real 100", capabilities=((9, 0),)):
        monkeypatch.setattr(backend, "_versions", lambda library: (built, driver, architectures))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")

    return describe


@pytest.mark.parametrize(("driver", "runs"), [(13020, True), (13000, True), (12080, False), (0, True)])
def test_drivers_that_are_too_old_are_named(driver, runs, gpu):
    """Kernels of a newer CUDA do not start; without a driver, torch says so."""
    gpu(built=13010, driver=driver)
    assert backend.backend_of("linear", "cuda") == ("cuda" if runs else "")
    if not runs:
        said = "built with CUDA 13.1, and the driver is for 12.8: update it, or build with an older nvcc"
        assert backend.backends()["cuda"] == said and backend.cuda_missing() == [said]
        assert backend.no_kernels("linear", "cuda") == f"no kernel for it: the compiled ones are {said}"


@pytest.mark.parametrize(
    ("architectures", "capabilities", "runs"),
    [
        ("80-real 90-real 100", [(8, 0)], True),
        ("80-real 90-real 100", [(8, 9)], True),  # machine code of the same major version
        ("80-real 90-real 100", [(12, 0)], True),  # from PTX
        ("80-real 90-real 100", [(7, 5)], False),
        ("80-real 90-real 100", [(7, 5), (9, 0)], True),  # one of two
        ("90-real", [(10, 0)], False),
        ("90-virtual", [(8, 9)], False),
        ("90-virtual", [(10, 0)], True),
        ("native", [(7, 5)], True),
    ],
)
def test_devices_that_there_is_no_code_for_are_named(architectures, capabilities, runs, gpu):
    gpu(architectures=architectures, capabilities=capabilities)
    assert backend.backend_of("linear", "cuda") == ("cuda" if runs else "")
    assert (backend.cuda_missing() == []) is runs
    assert ("; devices: GPU 0" in backend.backends()["cuda"]) is runs
    if not runs:
        major, minor = capabilities[0]
        said = f"built for GPUs of architectures {architectures}, and GPU 0 is sm_{major}{minor}"
        said += ": build with -DCMAKE_CUDA_ARCHITECTURES"
        assert backend.backends()["cuda"] == said
        assert backend.no_kernels("linear", "cuda") == f"no kernel for it: the compiled ones are {said}"


def test_nobody_wakes_the_driver_to_choose_a_backend(gpu, monkeypatch):
    gpu(capabilities=[(7, 5)])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: pytest.fail("woken"))
    assert backend.backend_of("linear", "cuda") == "cuda"


def test_nobody_looks_elsewhere():
    x = torch.ones(3)
    assert dispatch.may_look(x) and not dispatch.may_look(x, x.to("meta"))
    with FakeTensorMode():
        assert not dispatch.may_look(torch.empty(3))
    assert not torch.compile(dispatch.may_look, backend="eager", fullgraph=True)(x)


# Layers and models


class Recorder(TorchDispatchMode):
    """Names of our operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "clebsch":
            self.names.add(function._schema.name.removeprefix("clebsch::"))
        return function(*args, **(kwargs or {}))


def there(value, device="cuda"):
    """A tensor like this one on another device; within FakeTensorMode."""
    return torch.empty(value.shape, dtype=value.dtype, device=device)


def called(module, *operands):
    """Our operators in a call on a GPU: its tensors have no numbers, and asking for one is an error."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        held = (*module.named_parameters(), *module.named_buffers())
        given = tuple(
            Graph(there(each.senders), there(each.receivers), each.num_nodes)
            if isinstance(each, Graph)
            else there(each)
            for each in operands
        )
        with Recorder() as recorder:
            out = torch.func.functional_call(module, {name: there(value) for name, value in held}, given)
    assert out.device.type == "cuda"
    return recorder.names


IRREPS = "4x0e+3x1o+2x2e"
ENDS = torch.tensor([0, 1, 2, 2, 3]), torch.tensor([1, 0, 0, 3, 3])
UVU = [(0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True)]


def layer_calls():
    """(layer, operands, kernels that run it)"""
    x = torch.randn(5, 23)
    return {
        "Linear": (o3.Linear(IRREPS, IRREPS, biases=True), (x,), {"linear"}),
        "Linear of rows": (
            o3.Linear(IRREPS, IRREPS, shared_weights=False),
            (x, torch.randn(5, 29)),
            {"tensor_product"},
        ),
        "Gate": (
            nn.Gate("4x0e", [torch.tanh], "5x0e", [torch.sigmoid], "3x1o+2x2e"),
            (torch.randn(5, 28),),
            {"gate"},
        ),
        "FullyConnectedTensorProduct": (
            o3.FullyConnectedTensorProduct(IRREPS, "3x0e", IRREPS),
            (x, torch.eye(3)[[0, 1, 2, 1, 1]]),
            {"tensor_product"},
        ),
        "SphericalHarmonics": (
            o3.SphericalHarmonics([0, 1, 2], True),
            (torch.randn(5, 3),),
            {"spherical_harmonics"},
        ),
        "TensorProductConv": (
            nn.TensorProductConv("4x0e+4x1o", "0e+1o", "4x0e", UVU),
            (torch.randn(4, 16), torch.randn(5, 4), torch.randn(5, 8), Graph(*ENDS, 4)),
            {"convolution", "graph_order"},
        ),
        "SymmetricContraction": (
            nn.SymmetricContraction("4x0e+4x1o", "4x0e", 2, num_elements=3),
            (torch.randn(5, 4, 4), torch.eye(3)[[0, 1, 2, 1, 1]]),
            {"symmetric_contraction"},
        ),
    }


LAYERS = tuple(layer_calls())


@pytest.mark.parametrize("name", LAYERS)
def test_layers_on_compiled_kernels(name, compiled):
    layer, operands, kernels = layer_calls()[name]
    assert called(layer, *operands) == kernels


@pytest.mark.parametrize("name", ["Linear", "Linear of rows", "Gate"])
def test_layers_without_kernels(name, nothing):
    layer, operands, _ = layer_calls()[name]
    assert called(layer, *operands) == set()


@has_triton
@pytest.mark.parametrize("name", LAYERS)
def test_layers_on_tritons_kernels(name, triton):
    layer, operands, kernels = layer_calls()[name]
    if name == "SymmetricContraction":
        return  # needs a kernel that Triton's are not
    assert called(layer, *operands) == kernels & (OF_TRITON | {"graph_order"})


class Model(torch.nn.Module):
    """One layer of a potential: energies of nodes from positions, in e3nn's layers or ours."""

    def __init__(self, package, gates):
        super().__init__()
        self.harmonics = package.SphericalHarmonics([0, 1, 2], True, "component")
        self.mix = package.Linear(IRREPS, IRREPS)
        self.product = package.FullyConnectedTensorProduct(
            IRREPS, "0e+1o+2e", "4x0e+5x0e+3x1o+2x2e", shared_weights=False, internal_weights=False
        )
        self.gate = gates.Gate("4x0e", [torch.tanh], "5x0e", [torch.sigmoid], "3x1o+2x2e")
        self.species = package.FullyConnectedTensorProduct(IRREPS, "3x0e", IRREPS)
        self.last = package.Linear(IRREPS, "0e")
        for name, end in zip(("senders", "receivers"), ENDS, strict=True):
            self.register_buffer(name, end)

    def forward(self, positions, x, weight, species):
        y = self.harmonics(positions[self.receivers] - positions[self.senders] + 0.5)
        messages = self.product(self.mix(x)[self.senders], y, weight)
        sums = messages.new_zeros(len(x), messages.shape[1]).index_add(0, self.receivers, messages)
        return self.last(self.gate(sums) + self.species(x, species))


def model_and_operands(package, gates):
    torch.manual_seed(0)
    model = Model(package, gates)
    weight = torch.randn(len(ENDS[0]), model.product.weight_numel)
    return model, (torch.randn(4, 3), torch.randn(4, 23), weight), torch.eye(3)[[0, 2, 1, 1]]


def of_packages():
    """e3nn's, e3nn's accelerated, ours; operands; one-hot rows."""
    theirs, operands, species = model_and_operands(e3nn.o3, e3nn.nn)
    ours, _, _ = model_and_operands(o3, nn)
    ours.load_state_dict(theirs.state_dict())
    return theirs, clebsch.accelerate(theirs, strict=True), ours, operands, species


KERNELS = {"spherical_harmonics", "linear", "tensor_product", "gate"}


def kernels_of(function):
    """Our operators in a call, which does not wait."""
    ran = what_runs(function)
    assert not ran & WAITS
    return {name.removeprefix("clebsch::") for name in ran if name.startswith("clebsch::")}


def reasons(model):
    """By name, those of the modules that were on the way to a kernel."""
    found = {name: vars(module).get("_clebsch_reason") for name, module in model.named_modules()}
    return {name: reason for name, reason in found.items() if reason is not None}


UNSEEN = "on a GPU nothing looks whether rows of y are one-hot, which would wait: e3nn's code multiplies"


@pytest.mark.parametrize("which", ["ours", "accelerated"])
def test_models(which, compiled, monkeypatch):
    """Values, first and second derivatives by operands and weights, on kernels for GPUs; nothing waits."""
    theirs, fast, ours, operands, species = of_packages()
    take_cpu_for_gpu(monkeypatch)
    model = fast if which == "accelerated" else ours
    held = [list(one.parameters()) for one in (model, theirs)]
    functions = (lambda *given, one=one: one(*given, species) for one in (model, theirs))
    assert_same_function(*functions, operands, held)
    assert kernels_of(lambda: model(*operands, species)) == KERNELS
    assert reasons(fast) == ({"species": UNSEEN} if which == "accelerated" else {})


def test_models_without_kernels(nothing, monkeypatch):
    """An accelerated model does what its package does, and says why."""
    theirs, fast, _, operands, species = of_packages()
    take_cpu_for_gpu(monkeypatch)
    assert kernels_of(lambda: fast(*operands, species)) == set()
    assert torch.equal(fast(*operands, species), theirs(*operands, species))
    said = {reason.split(": ", 1)[1] for reason in reasons(fast).values()}
    assert said == {"no kernel for it: the compiled ones are not built"}
    assert set(reasons(fast)) == {"harmonics", "mix", "product", "gate", "gate.mul", "species", "last"}


@has_triton
def test_models_on_tritons_kernels(triton, monkeypatch):
    theirs, fast, _, operands, species = of_packages()
    take_cpu_for_gpu(monkeypatch)
    assert kernels_of(lambda: fast(*operands, species)) == {"spherical_harmonics", "tensor_product"}
    torch.testing.assert_close(fast(*operands, species), theirs(*operands, species), rtol=1e-11, atol=1e-11)
    assert set(reasons(fast)) == {"mix", "gate", "species", "last"}


DIFFERENTIABLE = {"Linear of rows": 2, "TensorProductConv": 3, "SymmetricContraction": 1}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_layers(name, compiled, monkeypatch):
    """Those that are not in the model: the same function on a GPU as on the CPU."""
    layer, operands, kernels = layer_calls()[name]
    count = DIFFERENTIABLE[name]
    weights = list(layer.parameters())

    def there(*given):
        with monkeypatch.context() as patch:
            take_cpu_for_gpu(patch)
            return layer(*given, *operands[count:])

    def here(*given):
        return layer(*given, *operands[count:])

    assert_same_function(there, here, operands[:count], (weights, weights))
    assert kernels_of(lambda: there(*operands[:count])) >= kernels - {"graph_order"}


def test_species_are_seen_on_the_cpu_alone(compiled, monkeypatch):
    """There one-hot rows take the linear layer with an index; on a GPU a contraction takes species."""
    _, fast, ours, operands, species = of_packages()
    for model in (fast, ours):
        assert "clebsch::one_hot_index" in what_runs(lambda model=model: model(*operands, species))
    layer = nn.SymmetricContraction("4x0e+4x1o", "4x0e+4x1o", 3, num_elements=3)
    x, index = torch.randn(5, 4, 4), torch.tensor([0, 2, 2, 1, 0])
    seen = layer(x, torch.eye(3)[index])
    take_cpu_for_gpu(monkeypatch)
    for given in (torch.eye(3)[index], index):
        assert kernels_of(lambda given=given: layer(x, given)) == {"symmetric_contraction"}
        torch.testing.assert_close(layer(x, given), seen, rtol=1e-12, atol=1e-12)


def test_operands_on_several_devices(compiled):
    """A sentence, not a kernel that reads where nothing is."""
    layer = o3.Linear("2x0e", "2x0e").to(torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        (x,) = fake((3, 2))
        said = "Linear: weight must be on the device of features, cuda:0, got cpu"
        with pytest.raises(ValueError, match=f"^{said}$"):
            layer(x)
    theirs = clebsch.accelerate(e3nn.o3.Linear("2x0e", "2x0e").to(torch.float32), strict=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with pytest.raises(RuntimeError, match="device"):  # torch's own
            theirs(*fake((3, 2)))
    assert theirs._clebsch_reason == "features is on cuda:0 and weight on cpu"


def test_graphs_of_a_call_are_not_looked_at(monkeypatch):
    take_cpu_for_gpu(monkeypatch)
    graph = Graph.of_call(*ENDS, 4)
    assert not what_runs(lambda: Graph.of_call(*ENDS, 4)) & WAITS
    assert what_runs(lambda: Graph(*ENDS, 4)) & WAITS
    assert (graph.num_nodes, graph.num_edges) == (4, 5)


def test_the_order_of_a_graph_on_a_gpu_is_made_with_it(monkeypatch):
    """Made at first use, a second stream could read it before it is there, and a CUDA graph replay it."""
    assert "clebsch::graph_order" not in what_runs(lambda: Graph(*ENDS, 4))
    take_cpu_for_gpu(monkeypatch)
    monkeypatch.setattr(backend, "_load_cuda", lambda: "")
    assert "clebsch::graph_order" in what_runs(lambda: Graph(*ENDS, 4))
    graph = Graph(*ENDS, 4)
    assert what_runs(lambda: graph.order) == set()
    assert what_runs(lambda: Graph.of_call(*ENDS, 4)) == set()
    # Without kernels a graph can be made, too.
    monkeypatch.setattr(backend, "_load_cuda", lambda: "not built")
    monkeypatch.setattr(backend._triton, "runs", lambda noun: False)
    assert "clebsch::graph_order" not in what_runs(lambda: Graph(*ENDS, 4))


# What explain says


@pytest.fixture
def explained(monkeypatch):
    """The entry of a layer as if it were on a device."""
    from clebsch.survey import Layer

    def entry(layer, device="cuda", **options):
        with monkeypatch.context() as patch:
            patch.setattr(Layer, "device", torch.device(device))
            (found,) = explain(layer, **options)
        return found

    return entry


def test_explain_on_compiled_kernels(compiled, explained):
    entry = explained(nn.TensorProductConv("4x0e+4x1o", "0e+1o", "4x0e", UVU))
    assert (entry.backend, entry.instruction_set, entry.reasons) == ("cuda", None, ())
    assert [one.kernel for one in entry.passes] == ["channels", "channels"]
    assert all(one.limit is None for one in entry.passes)  # those of the CPU are not the GPU's
    entry = explained(o3.FullyConnectedTensorProduct(IRREPS, "3x0e", IRREPS))
    assert [one.kernel for one in entry.passes] == ["rows", "rows"]
    assert entry.reasons == (
        "not every path is uvu with one copy of y: a kernel that takes any plan, and is not tuned",
        "nothing looks whether rows of y are one-hot, which would wait for the GPU: they go through the "
        "matrices of all 3; ops.linear takes an index",
    )
    for layer in (o3.Linear("2x0e", "2x0e"), o3.SphericalHarmonics([0, 2], True)):
        entry = explained(layer)
        assert (entry.backend, entry.instruction_set, entry.reasons) == ("cuda", None, ())
    assert explained(nn.Gate("4x0e", [torch.tanh], "5x0e", [torch.sigmoid], "5x1o")).backend == "cuda"
    assert explained(o3.Linear("2x0e", "2x0e").bfloat16()).backend == "torch"
    timed = explained(o3.Linear("2x0e", "2x0e"), rows=3)
    assert timed.reasons == ("not timed: it is on cuda; layers are run and compared on the CPU",)


def test_explain_without_kernels(nothing, explained):
    entry = explained(nn.TensorProductConv("4x0e+4x1o", "0e+1o", "4x0e", UVU))
    assert entry.reasons[0] == "it is on cuda: no kernel for it: the compiled ones are not built"
    assert explained(o3.Linear("2x0e", "2x0e")).backend == "torch"
    assert explained(nn.Gate("4x0e", [torch.tanh], "5x0e", [torch.sigmoid], "5x1o")).backend == "torch"


@has_triton
def test_explain_on_tritons_kernels(triton, explained):
    entry = explained(o3.FullyConnectedTensorProduct(IRREPS, "0e+1o", IRREPS))
    assert (entry.backend, [one.kernel for one in entry.passes]) == ("triton", ["modes", "modes"])
    assert explained(o3.Linear("2x0e", "2x0e")).backend == "torch"
