"""Products with rows of a table of types: the same numbers and derivatives as with the rows."""

import e3nn.o3
import pytest
import torch
from torch.autograd import gradcheck

import clebsch
from clebsch.convert import e3nn as rules
from clebsch.convert.typed_rows import mark, typed_rows


def product(elements, dtype=torch.float64):
    irreps = "7x0e+3x1o+0x1e+2x0e"
    stock = e3nn.o3.FullyConnectedTensorProduct(irreps, f"{elements}x0e", "5x0e+4x1o").to(dtype)
    return stock, clebsch.accelerate(stock, strict=True)


def case(atoms, types, elements, seed=0):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(types, elements, dtype=torch.float64, generator=generator).requires_grad_()
    x = torch.randn(atoms, 18, dtype=torch.float64, generator=generator).requires_grad_()
    return x, table, torch.randint(types, (atoms,), generator=generator)


@pytest.mark.parametrize("atoms, types", [(20, 1), (20, 3), (9, 89), (1, 1), (0, 2), (7, 4)])
@pytest.mark.parametrize("elements", [1, 5])
def test_as_with_the_rows(atoms, types, elements, monkeypatch):
    stock, fast = product(elements)
    x, table, index = case(atoms, types, elements)
    index = index % 3  # few of many types are there
    taken = []
    multiply = rules.multiply
    monkeypatch.setattr(rules, "multiply", lambda *given: taken.append(multiply(*given)) or taken[-1])
    rows = table[index]
    theirs = stock(x, rows)
    mark(rows, table, index)
    ours = fast(x, rows)
    assert (taken[-1] is not None) == (2 * min(types, len(index.unique())) <= atoms)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = dict(create_graph=True, materialize_grads=True)
    ours = torch.autograd.grad(ours.square().sum(), (x, table, fast.weight), **weights)
    theirs = torch.autograd.grad(theirs.square().sum(), (x, table, stock.weight), **weights)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    second = dict(retain_graph=True, materialize_grads=True)  # both begin with the same rows
    ours = torch.autograd.grad(ours[0].square().sum(), (x, table, fast.weight), **second)
    theirs = torch.autograd.grad(theirs[0].square().sum(), (x, table, stock.weight), **second)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_gradients():
    _, fast = product(2)
    x, table, index = case(4, 2, 2)

    def function(x, table):
        rows = table[index]
        mark(rows, table, index)
        return fast(x, rows)

    assert gradcheck(function, (x, table))


def test_other_rows_are_no_rows_of_the_table():
    _, _, index = case(6, 2, 3)
    table = torch.randn(2, 3)
    rows = table[index]
    assert typed_rows(rows) is None
    mark(rows, table, index)
    assert typed_rows(rows) is not None
    assert typed_rows(rows * 1) is None and typed_rows(rows[:]) is None and typed_rows(rows.clone()) is None
    rows.add_(1)
    assert typed_rows(rows) is None
    with torch.inference_mode():
        rows = table[index]
        mark(rows, table, index)
        assert typed_rows(rows) is None
