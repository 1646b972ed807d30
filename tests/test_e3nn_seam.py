"""clebsch.e3nn: e3nn's own modules on our kernels, and what they do where kernels do not serve.

Runs under e3nn 0.4.4 (with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 on torch >= 2.6), 0.5 and 0.6.
"""

import contextlib
import copy
import gc
import importlib.util
import io
import pickle
import subprocess
import sys
import threading
import weakref

import e3nn
import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3 as e3nn_o3

import clebsch
from clebsch.e3nn import disable, enable, is_enabled
from clebsch.e3nn.tensor_product import COMPILES
from clebsch.testing import random_plans
from make_checkpoints import LAYERS, outputs, seeded

# Programs written for e3nn, where this tree has them.
PROGRAMS = importlib.import_module("programs") if importlib.util.find_spec("programs") else None
METHODS = [
    *((e3nn_o3.TensorProduct, name) for name in ("forward", "__init__", "_load_from_state_dict")),
    *((cls, "forward") for cls in (e3nn_o3.Linear, e3nn_o3.SphericalHarmonics)),
]
ORIGINAL = [vars(cls).get(name) for cls, name in METHODS]
KERNELS = ("clebsch::tensor_product", "clebsch::spherical_harmonics", "clebsch::linear")


@pytest.fixture(autouse=True)
def put_back():
    torch.set_default_dtype(torch.float64)
    yield
    disable()
    assert is_untouched()


def is_untouched():
    return [vars(cls).get(name) for cls, name in METHODS] == ORIGINAL


def product(**kwargs):
    return e3nn_o3.FullyConnectedTensorProduct("2x0e+2x1o+1x2e", "0e+1o+2e", "2x0e+2x1o+1x2o", **kwargs)


def operands(module=None, *batch):
    batch = batch or (4,)
    return torch.randn(*batch, 13), torch.randn(*batch, 9)


def kernels_called(function):
    """Names of our operators that run in a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.name for event in profile.events() if event.name.startswith("clebsch::")}


def assert_same(found, expected, tolerance=1e-12):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    if found.numel():
        assert (found - expected).abs().max() <= tolerance * max(1.0, expected.abs().max())


def derivatives(function, *inputs):
    """Value, gradients, and gradients of gradients, with respect to all inputs; zeros where none flows."""
    inputs = [value.detach().requires_grad_() for value in inputs]
    out = function(*inputs)
    first = gradients(out.pow(2).sum(), inputs)
    second = gradients(sum(grad.pow(2).sum() for grad in first), inputs)
    return [out.detach(), *first, *second]


def gradients(value, inputs):
    if not value.requires_grad:
        return [torch.zeros_like(given) for given in inputs]
    return torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)


# Leading dimensions of x and y.
BATCHES = (((3,), (3,)), ((0,), (0,)), ((), ()), ((2, 3), (2, 3)), ((2, 1), (3,)), ((1,), (4,)))


class TestNumbers:
    @hypothesis.settings(max_examples=40)
    @hypothesis.given(
        plan=random_plans(),
        shared=st.booleans(),
        batches=st.sampled_from(BATCHES),
        normalization=st.sampled_from(["component", "norm"]),
    )
    def test_products(self, plan, shared, batches, normalization):
        instructions = [(*tuple(vars(path).values())[:5], abs(path.coefficient)) for path in plan.paths]
        arguments = [str(plan.irreps_in1), str(plan.irreps_in2), str(plan.irreps_out), instructions]
        try:
            module = e3nn_o3.TensorProduct(
                *arguments, irrep_normalization=normalization, shared_weights=shared, internal_weights=False
            )
            shapes = [
                (*batch, size) for batch, size in zip(batches, (plan.irreps_in1.dim, plan.irreps_in2.dim))
            ]
            batch = torch.broadcast_shapes(*batches) or (1,)
            shapes.append((module.weight_numel,) if shared else (*batch, module.weight_numel))
            inputs = [torch.randn(shape) for shape in shapes]
            if module.weight_numel == 0 and shared:
                inputs = inputs[:2]
            expected = derivatives(module, *inputs)
        except (RuntimeError, AssertionError):
            assert not e3nn.__version__.startswith("0.6")
            hypothesis.reject()  # older ones cannot
        with enable():
            found = derivatives(module, *inputs)
        assert module._clebsch_reason is None and module._clebsch_plan is not None
        assert len(found) == len(expected)
        for value, wanted in zip(found, expected, strict=True):
            assert_same(value, wanted, 1e-11)

    @pytest.mark.parametrize("name", LAYERS)
    def test_layers(self, name):
        module, inputs = seeded(LAYERS[name], e3nn_o3, e3nn_nn, 0)
        expected = outputs(module, inputs)
        with enable():
            for value, wanted in zip(outputs(module, inputs), expected, strict=True):
                assert_same(value, wanted)
            built, _ = seeded(LAYERS[name], e3nn_o3, e3nn_nn, 0)
            assert built.state_dict().keys() == module.state_dict().keys()
            for value, wanted in zip(outputs(built, inputs), expected, strict=True):
                assert_same(value, wanted)

    def test_kernels_run(self):
        """Else everything here would pass with e3nn's own code."""
        module, inputs = seeded(LAYERS["network"], e3nn_o3, e3nn_nn, 0)
        assert not kernels_called(lambda: module(*inputs))
        enable()
        assert kernels_called(lambda: module(*inputs)) >= set(KERNELS)
        reasons = {
            type(part).__name__: part._clebsch_reason
            for part in module.modules()
            if hasattr(part, "_clebsch_reason")
        }
        assert set(reasons.values()) == {None}
        assert {"TensorProduct", "FullyConnectedTensorProduct", "ElementwiseTensorProduct"} <= reasons.keys()
        assert {"Linear", "SphericalHarmonics"} <= reasons.keys()

    @pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith(("linear", "harmonics"))])
    def test_derivatives_of_linear_and_harmonics(self, name):
        module, inputs = seeded(LAYERS[name], e3nn_o3, e3nn_nn, 0)
        expected = derivatives(module, *inputs)
        with enable():
            found = derivatives(module, *inputs)
        assert module._clebsch_reason is None
        for value, wanted in zip(found, expected, strict=True):
            assert_same(value, wanted)

    def test_weights_in_a_list_and_operands_that_are_views(self):
        module = product(internal_weights=False)
        weights = [torch.randn(ins.path_shape) for ins in module.instructions]
        x, y = (value.t().contiguous().t() for value in operands())
        expected = module(x, y[:1], weights)
        with enable():
            assert_same(module(x, y[:1], weights), expected)
        assert module._clebsch_reason is None

    def test_the_same_training(self):
        curves = []
        for on in (False, True):
            module, inputs = seeded(LAYERS["network"], e3nn_o3, e3nn_nn, 0)
            optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
            curve = []
            if on:
                enable()
            for _ in range(20):
                x = inputs[1].detach().requires_grad_()
                energy = module.train()(inputs[0], x, inputs[2]).sum()
                (force,) = torch.autograd.grad(energy, x, create_graph=True)
                loss = (energy - 1.0) ** 2 + force.pow(2).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                curve.append(loss.item())
            curves.append(torch.tensor(curve))
        assert curves[0][-1] < curves[0][0]
        assert_same(curves[1], curves[0], 1e-9)


@pytest.mark.parametrize("name", PROGRAMS.NAMES if PROGRAMS else [])
@pytest.mark.parametrize("when", ["before", "after"])
def test_programs_learn_the_same(name, when):
    """Programs as their authors wrote them, all of it on kernels, or the model alone once it is built."""
    program = PROGRAMS.load_program(name)
    curves = []
    for on in (False, True):
        torch.manual_seed(7)
        with contextlib.ExitStack() as stack:
            if on and when == "before":
                stack.enter_context(enable())
            model = program.make_model()
            if on and when == "after":
                stack.enter_context(enable(model))
            curves.append(torch.tensor(program.train(model, 40, seed=3)))
    served = [part for part in model.modules() if isinstance(part, e3nn_o3.TensorProduct)]
    assert served and all(part._clebsch_reason is None for part in served)
    assert curves[0][-1] < 0.6 * curves[0][0]
    assert ((curves[1] - curves[0]).abs() <= 1e-11 * curves[0].abs()).all()


class TestSwitch:
    def test_the_attribute_of_the_package(self):
        assert clebsch.e3nn.enable is enable

    def test_enable_and_disable_repeat(self):
        assert not is_enabled()
        for _ in range(2):
            enable()
            assert is_enabled() and not is_untouched()
        for _ in range(2):
            disable()
            assert not is_enabled() and is_untouched()

    def test_nested(self):
        with enable():
            with enable():
                assert is_enabled()
            assert is_enabled()
        assert not is_enabled()
        enable()
        with enable():
            pass
        assert is_enabled()
        with enable():
            disable()
            assert not is_enabled()
        assert not is_enabled()

    def test_an_exception_ends_it(self):
        with pytest.raises(KeyError), enable():
            raise KeyError
        assert not is_enabled() and is_untouched()

    def test_used_again(self):
        enabled = enable()
        for _ in range(2):
            with enabled:
                assert is_enabled()
            assert not is_enabled()

    def test_used_again_for_a_model(self):
        model = torch.nn.Sequential(product())
        enabled = enable(model)
        disable(model)
        assert not is_enabled(model[0])
        for _ in range(2):
            with enabled:
                assert is_enabled(model[0])
            assert not is_enabled(model[0]) and is_untouched()

    def test_threads(self):
        module, (x, y) = product(), operands()
        expected = module(x, y)
        failures = []

        def work():
            for _ in range(50):
                with enable():
                    if not is_enabled() or not torch.allclose(module(x, y), expected, rtol=0, atol=1e-12):
                        failures.append("wrong")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures and not is_enabled() and is_untouched()

    def test_one_model(self):
        chosen, other, (x, y) = torch.nn.Sequential(product()), product(), operands()
        expected = chosen[0](x, y), other(x, y)
        enable(chosen)
        assert is_enabled(chosen[0]) and not is_enabled(other) and not is_enabled()
        assert kernels_called(lambda: chosen[0](x, y)) and not kernels_called(lambda: other(x, y))
        assert_same(chosen[0](x, y), expected[0])
        assert torch.equal(other(x, y), expected[1])
        disable(chosen)
        assert not is_enabled(chosen[0]) and is_untouched()

    def test_one_model_for_a_while(self):
        model = product()
        with enable(model):
            with enable(model):
                pass
            assert is_enabled(model)
        assert not is_enabled(model) and is_untouched()

    def test_one_model_beside_all(self):
        model, (x, y) = product(), operands()
        enable(model)
        with enable():
            assert kernels_called(lambda: product()(x, y))
        assert not kernels_called(lambda: product()(x, y)) and kernels_called(lambda: model(x, y))
        enable()
        disable(model)
        assert kernels_called(lambda: model(x, y))

    def test_a_copy_is_enabled_until_all_is_disabled(self):
        model, (x, y) = product(), operands()
        enable(model)
        again = copy.deepcopy(model)
        assert is_enabled(again) and kernels_called(lambda: again(x, y))
        disable()
        assert not is_enabled(again)
        enable(e3nn_o3.Linear("0e", "0e"))
        assert not is_enabled(again) and not kernels_called(lambda: again(x, y))

    def test_models_are_not_kept_alive(self):
        model = product()
        enable(model)
        model(*operands())
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None
        with enable():
            pass
        assert is_untouched()

    def test_bad_arguments(self):
        with pytest.raises(TypeError) as error:
            enable("model")
        assert str(error.value) == "clebsch.e3nn: model must be a torch.nn.Module, got str"
        with pytest.raises(ValueError) as error:
            enable(torch.nn.ReLU())
        assert str(error.value) == (
            "clebsch.e3nn: model, a ReLU, has no TensorProduct, Linear or SphericalHarmonics of e3nn"
        )
        assert is_untouched()

    def test_without_e3nn(self):
        program = (
            "import sys; sys.modules['e3nn'] = None\n"
            "import clebsch\n"
            "try: clebsch.e3nn.enable()\n"
            "except ImportError as error: print(error)\n"
            "assert not clebsch.e3nn.is_enabled()\n"
            "clebsch.e3nn.disable()"
        )
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (run.stdout.strip(), run.stderr) == (
            "clebsch.e3nn: e3nn is not installed: there is nothing to enable",
            "",
        )

    def test_what_another_put_in_our_place_stays(self):
        enable()
        ours = e3nn_o3.Linear.forward

        def forward(self, *args):
            return ours(self, *args)

        e3nn_o3.Linear.forward = forward
        try:
            disable()
            assert e3nn_o3.Linear.forward is forward
            module = e3nn_o3.Linear("0e", "0e")
            assert module(torch.ones(1, 1)).shape == (1, 1)
        finally:
            e3nn_o3.Linear.forward = ORIGINAL[3]


class TestSigns:
    """e3nn computes with its tables, so we must with their signs."""

    def flipped(self, module):
        keys = [key for key in module.state_dict() if "_w3j_1_2_2" in key or "_w3j_2_1_2" in key]
        assert keys
        return {key: -value if key in keys else value for key, value in module.state_dict().items()}

    def product(self):
        return e3nn_o3.FullyConnectedTensorProduct("2x1e+1x2e", "1e+2e", "2x2e+1e")

    def test_a_checkpoint_goes_either_way(self):
        plain = self.product()
        with enable():
            module = self.product()
        assert module.state_dict().keys() == plain.state_dict().keys()
        x, y = torch.randn(4, 11), torch.randn(4, 8)
        for state in (plain.state_dict(), self.flipped(plain), module.state_dict()):
            plain.load_state_dict(state)
            expected = plain(x, y)
            with enable():
                module.load_state_dict(state)
                assert_same(module(x, y), expected)
            assert module._clebsch_reason is None
            plain.load_state_dict(module.state_dict())
            assert_same(plain(x, y), expected)

    @pytest.mark.parametrize("way", ["copy_", "assign", "to", "deepcopy", "pickle"])
    def test_signs_are_seen_however_they_come(self, way):
        module, x, y = self.product(), torch.randn(4, 11), torch.randn(4, 8)
        enable()
        before = module(x, y)
        state = self.flipped(module)
        if way == "copy_":
            for key, value in module.state_dict().items():
                value.copy_(state[key])
        elif way == "assign":
            module.load_state_dict(state, assign=True)
        elif way == "to":
            module.to(torch.float32).to(torch.float64)
            for key, buffer in module.named_buffers():
                buffer.copy_(state[key].sign() * buffer.abs() if "_w3j" in key else buffer)
        else:
            module.load_state_dict(state)
            module = copy.deepcopy(module) if way == "deepcopy" else pickle.loads(pickle.dumps(module))
        found = module(x, y)
        with_kernels = module._clebsch_reason is None
        disable()
        assert with_kernels
        assert_same(found, module(x, y), 1e-6 if way == "to" else 1e-12)
        assert (found - before).abs().max() > 0.1

    def test_tables_that_are_written_with_what_they_held(self, monkeypatch):
        """So does DistributedDataParallel at every step: the plan is not looked for again."""
        from clebsch.e3nn import tensor_product

        module, x, y = self.product(), torch.randn(4, 11), torch.randn(4, 8)
        enable()
        expected = module(x, y)
        searches = []
        find = tensor_product._find_plan
        monkeypatch.setattr(tensor_product, "_find_plan", lambda *given: searches.append(1) or find(*given))
        for table in module.buffers():
            table.copy_(table.clone())
        assert torch.equal(module(x, y), expected) and not searches
        module.load_state_dict(self.flipped(module))
        assert not torch.allclose(module(x, y), expected) and searches

    def test_compiled_code_follows(self):
        module, x, y = self.product(), torch.randn(4, 11), torch.randn(4, 8)
        enable()
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        assert bool(kernels_called(lambda: compiled(x, y))) == COMPILES
        for _ in range(2):
            module.load_state_dict(self.flipped(module))
            found = compiled(x, y)
            with enable():
                assert_same(found, module(x, y))

    def test_another_table_is_e3nns(self):
        module, x, y = self.product(), torch.randn(4, 11), torch.randn(4, 8)
        enable()
        tables = [(key, value) for key, value in module.named_buffers() if "_w3j" in key]
        tables[0][1].mul_(2)
        found = module(x, y)
        triple = tuple(map(int, tables[0][0].split("_")[-3:]))
        assert module._clebsch_reason == (
            f"{tables[0][0]} is not +1 or -1 times the coupling coefficients of l = {triple}"
        )
        assert module._clebsch_plan is None
        disable()
        assert torch.equal(found, module(x, y))

    def test_refused_tables_are_looked_at_again(self):
        module, x, y = self.product(), torch.randn(4, 11), torch.randn(4, 8)
        expected, good = module(x, y), copy.deepcopy(module.state_dict())
        enable(module)
        next(value for key, value in module.named_buffers() if "_w3j" in key).mul_(2)
        module(x, y)
        assert "is not +1 or -1 times" in module._clebsch_reason
        module.load_state_dict(good)
        assert_same(module(x, y), expected)
        assert module._clebsch_reason is None
        disable()
        module.to("meta")
        enable(module)
        assert module._clebsch_reason == "its tables are on meta, without numbers"
        module.to_empty(device="cpu")
        module.load_state_dict(good)
        assert_same(module(x, y), expected)
        assert module._clebsch_reason is None


class TestFallThrough:
    """What our kernels do not take gives what it gives without us, and the module says why."""

    def both(self, call, *modules):
        # TorchScript, which e3nn < 0.6 uses, runs other code from the second call on: it has no forward mode
        call()
        expected = call()
        with enable():
            modules[0](*operands())  # on the kernels before and after
            found = call()
            reasons = [module._clebsch_reason for module in modules]
            modules[0](*operands())
            assert modules[0]._clebsch_reason is None
        assert_same(found, expected)
        return reasons[0]

    def test_transforms(self):
        module, (x, y) = product(), operands()

        def loss(x):
            return module(x, y).pow(3).sum()

        for call in (
            lambda: torch.func.grad(loss)(x),
            lambda: torch.func.hessian(loss)(x),
            lambda: torch.vmap(module)(x, y),
            lambda: torch.vmap(module, in_dims=(0, None))(x, y[0]),
            lambda: torch.func.jvp(loss, (x,), (x,))[1],
            lambda: torch.func.jacfwd(loss)(x),
        ):
            assert self.both(call, module) == "a transform of torch.func is at work"

    def test_forward_mode(self):
        module, (x, y) = product(), operands()

        def call():
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
                return torch.autograd.forward_ad.unpack_dual(module(dual, y)).tangent

        assert self.both(call, module) == "x has a forward-mode tangent"

    @pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
    def test_vectorized_jacobians(self, strategy):
        module, (x, y) = product(), operands()
        self.both(
            lambda: torch.autograd.functional.jacobian(
                lambda x: module(x, y), x, vectorize=True, strategy=strategy
            ),
            module,
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_other_dtypes(self, dtype):
        module, (x, y) = product(), operands()
        low = copy.deepcopy(module).to(dtype)
        expected = low(x.to(dtype), y.to(dtype))
        enable()
        assert torch.equal(low(x.to(dtype), y.to(dtype)), expected)
        name = str(dtype).removeprefix("torch.")
        assert low._clebsch_reason == (
            f"dtypes are {name}, {name}, {name}: kernels take float32 or float64, the same for all"
        )

    def test_changes_of_dtype(self):
        module, (x, y) = product(), operands()
        enable()
        for dtype in (torch.float32, torch.float64):
            module.to(dtype)
            out = module(x.to(dtype), y.to(dtype))
            assert out.dtype == dtype and module._clebsch_reason is None

    def test_another_device(self):
        module, (x, y) = product().to("meta"), operands()
        enable()
        assert module(x.to("meta"), y.to("meta")).shape == (4, 13)
        assert module._clebsch_reason == "x is on meta: kernels run on the CPU and on GPUs"

    def test_autocast(self):
        linear = e3nn_o3.Linear("2x0e+2x1o", "3x0e").float()
        x = torch.randn(4, 8, dtype=torch.float32)
        outs = []
        for on in (False, True):
            if on:
                enable()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outs.append(linear(x))
        assert outs[0].dtype == outs[1].dtype and torch.equal(*outs)
        assert linear._clebsch_reason == "autocast is on"

    def test_subclasses(self):
        class Named(torch.Tensor):
            pass

        module, (x, y) = product(), operands()
        reason = self.both(lambda: module(x.as_subclass(Named), y).as_subclass(torch.Tensor), module)
        assert reason == "x is a Named, not a plain tensor"

    def test_inference_mode(self):
        x, y = operands()
        enable()
        with torch.inference_mode():
            inside = product()
            inside(x, y)
            assert inside._clebsch_reason == (
                "it was built in torch.inference_mode: writing to its tables would leave no trace"
            )
        outside = product()
        with torch.inference_mode():
            outside(x, y)
        assert outside._clebsch_reason is None
        # the same numbers in tables that do not count how often they were written
        with torch.inference_mode():
            outside.load_state_dict(copy.deepcopy(outside.state_dict()), assign=True)
            outside(x, y)
        assert outside._clebsch_reason == inside._clebsch_reason
        inside.to(torch.float32).to(torch.float64)  # tables that count
        with torch.no_grad():
            inside(x, y)
        assert inside._clebsch_reason is None

    @pytest.mark.parametrize(
        "call",
        [
            lambda module, x, y: module(x[:, :5], y),
            lambda module, x, y: module(x, y[:3]),
            lambda module, x, y: module(x, y, torch.randn(3)),
            lambda module, x, y: module(x.float(), y),
        ],
    )
    def test_errors_are_e3nns(self, call):
        module, (x, y) = product(), operands()
        errors = []
        for on in (False, True):
            if on:
                enable()
            with pytest.raises(Exception) as error:
                call(module, x, y)
            errors.append((error.type, str(error.value).split("\n")[0]))
        assert errors[0] == errors[1]

    def test_weights_that_are_missing(self):
        for module in (product(internal_weights=False), e3nn_o3.Linear("0e", "0e", internal_weights=False)):
            inputs = operands() if hasattr(module, "irreps_in1") else (torch.ones(1, 1),)
            with enable(), pytest.raises(RuntimeError, match="must be provided when"):
                module(*inputs)


class TestTools:
    """torch.jit, torch.compile and pickle see e3nn's modules as they are."""

    def test_script(self):
        modules = [
            (product(), operands()),
            (e3nn_o3.Linear("2x0e+1o", "3x0e+1o", biases=True), (torch.randn(4, 5),)),
            (e3nn_o3.SphericalHarmonics([0, 1, 2], True), (torch.randn(4, 3),)),
            (e3nn_nn.Gate("2x0e", [torch.tanh], "1x0e", [torch.sigmoid], "1x1o"), (torch.randn(4, 6),)),
        ]
        enable()
        for module, inputs in modules:
            expected = module(*inputs)
            scripted = e3nn.util.jit.script(module)
            assert_same(scripted(*inputs), expected)
            assert not kernels_called(lambda scripted=scripted, inputs=inputs: scripted(*inputs))
            file = io.BytesIO()
            torch.jit.save(scripted, file)
            file.seek(0)
            assert_same(torch.jit.load(file)(*inputs), expected)

    def test_trace(self):
        module, inputs = product(), operands()
        enable()
        traced = torch.jit.trace(module, inputs)
        assert "clebsch" not in str(traced.inlined_graph)
        assert_same(traced(*inputs), module(*inputs))
        assert_same(
            e3nn.util.jit.compile(e3nn_o3.Norm("2x1o"))(inputs[0][:, :6]),
            inputs[0][:, :6].reshape(4, 2, 3).norm(dim=-1),
        )

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compile(self, backend):
        module, (x, y) = product(), operands()
        x.requires_grad_()
        expected = module(x, y)
        (expected_grad,) = torch.autograd.grad(expected.pow(2).sum(), x)
        harmonics = e3nn_o3.SphericalHarmonics([0, 1, 2], True)
        linear = e3nn_o3.Linear("2x0e+2x1o+1x2e", "0e+1o")
        enable()
        compiled = torch.compile(module, backend=backend, fullgraph=True)  # before any other call
        found = compiled(x, y)
        (grad,) = torch.autograd.grad(found.pow(2).sum(), x)
        assert_same(found, expected)
        assert_same(grad, expected_grad)
        assert bool(kernels_called(lambda: compiled(x, y))) == COMPILES
        for layer, argument in ((harmonics, x[:, :3]), (linear, x)):
            assert_same(torch.compile(layer, backend="aot_eager")(argument), layer(argument))

    def test_compiled_transforms(self):
        module, harmonics, (x, y) = product(), e3nn_o3.SphericalHarmonics([0, 1, 2], True), operands()
        for function, point in (
            (torch.func.grad(lambda x: module(x, y).pow(3).sum()), x),
            (torch.func.grad(lambda x: harmonics(x).pow(3).sum()), x[:, :3]),
            (lambda x: torch.func.jvp(harmonics, (x,), (torch.ones_like(x),))[1], x[:, :3]),
        ):
            torch._dynamo.reset()
            expected = function(point)
            with enable():
                assert_same(torch.compile(function, backend="aot_eager")(point), expected)

    def test_export_and_make_fx(self):
        from torch.fx.experimental.proxy_tensor import make_fx

        module, inputs = product(), operands()
        with enable():
            # its tables are looked at while make_fx records
            assert "clebsch" in make_fx(module)(*inputs).code
            exported = torch.export.export(module, inputs)
            assert "clebsch" in str(exported.graph)
            assert_same(exported.module()(*inputs), module(*inputs))

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
    def test_copies(self, copied):
        module, inputs = product(), operands()
        with enable():
            expected = module(*inputs)
            again = copied(module)
            assert_same(again(*inputs), expected)
            assert again._clebsch_reason is None
        assert_same(copied(again)(*inputs), expected)

    def test_files_need_no_clebsch(self, tmp_path):
        with enable():
            model = torch.nn.ModuleList([e3nn_o3.Linear("2x0e", "0e"), product()])
            model[0](torch.ones(1, 2))
            model[1](*operands())
            torch.save(model, tmp_path / "model.pt")
        program = (
            "import sys; sys.modules['clebsch'] = None\n"
            "import torch; from e3nn import o3\n"
            f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
            "print(model[0](torch.ones(1, 2).double()).shape)"
        )
        run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
        assert run.stdout.strip() == "torch.Size([1, 1])", run.stderr

    def test_hooks_and_functional_calls(self):
        module, inputs = product(), operands()
        seen = []
        module.register_forward_hook(lambda *call: seen.append(call[2].shape))
        enable()
        expected = module(*inputs)
        assert seen == [(4, 13)]
        parameters = {name: 2 * value for name, value in module.named_parameters()}
        assert_same(torch.func.functional_call(module, parameters, inputs), 2 * expected)

    def test_right(self):
        module, (x, y) = product(compile_right=True), operands()
        enable()
        assert_same(torch.einsum("zi,zij->zj", x, module.right(y)), module(x, y))

    @pytest.mark.parametrize("specialized", [True, False])
    @pytest.mark.parametrize("jit", [True, False])
    def test_optimization_defaults(self, specialized, jit):
        before = e3nn.get_optimization_defaults()
        try:
            e3nn.set_optimization_defaults(specialized_code=specialized, jit_script_fx=jit)
            module, inputs = product(), operands()
        finally:
            e3nn.set_optimization_defaults(**{k: before[k] for k in ("specialized_code", "jit_script_fx")})
            if "jit_mode" in before:
                e3nn.set_optimization_defaults(jit_mode=before["jit_mode"])
        expected = module(*inputs)
        with enable():
            assert_same(module(*inputs), expected)
        assert module._clebsch_reason is None


class TestLinear:
    """What e3nn's Linear does not keep has to be found out."""

    def same(self, module, *inputs):
        expected = module(*inputs)
        with enable():
            assert_same(module(*inputs), expected)
        return module._clebsch_reason

    def test_axes_of_external_weights(self):
        plain = e3nn_o3.Linear("2x0e+1o", "3x0e+1o", internal_weights=False)
        weight = torch.randn(plain.weight_numel)
        assert self.same(plain, torch.randn(4, 5), weight) is None
        for f_in, f_out in ((2, 3), (1, 1), (2, 2)):
            axes = e3nn_o3.Linear("2x0e+1o", "3x0e+1o", internal_weights=False, f_in=f_in, f_out=f_out)
            weight = torch.randn(f_in, f_out, axes.weight_numel)
            assert "it is not a Linear that is known here" in self.same(axes, torch.randn(4, f_in, 5), weight)

    def test_weights_of_rows(self):
        module = e3nn_o3.Linear("2x0e+1o", "3x0e+1o", shared_weights=False)
        features, weight = (torch.randn(2, 4, size) for size in (5, module.weight_numel))
        assert self.same(module, features, weight) is None
        assert self.same(module, features, weight.reshape(8, -1)) == (
            "the shape of weight is not that of the instructions, for every row of features"
        )

    def test_a_bias_alone(self):
        module = e3nn_o3.Linear("1o", "2x0e+1o", biases=True, _optimize_einsums=False)
        assert self.same(module, torch.randn(1, 3)) == "a block of its output is a bias alone"

    def test_leading_dimensions(self):
        module = e3nn_o3.Linear("2x0e+1o", "3x0e+1o", biases=True)
        for batch in ((), (0,), (2, 3)):
            assert self.same(module, torch.randn(*batch, 5)) is None
