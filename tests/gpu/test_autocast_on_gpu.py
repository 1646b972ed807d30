"""Under autocast operators on a GPU give the same bits, wherever it is on."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from device import only_there

from product_calls import same_bits
from test_autocast import CALLS, calls, everywhere, results

pytestmark = only_there


@everywhere
@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits(name, where):
    call, operands = dict(calls("cuda"))[name]
    found = results(call, operands, where, "cuda")
    assert same_bits(found, results(call, operands, device="cuda"))
