"""Products on laid-out weights equal torch's own; few rows, other dtypes and other devices lay nothing out."""

import pytest
import torch
import torch.nn.functional as F

from wallprobe.models import products
from wallprobe.rng import generator

RNG = generator("products test")
ROWS, WEIGHT, BIAS = torch.randn(3, 7, 24, generator=RNG), torch.randn(40, 24, generator=RNG), torch.randn(40, generator=RNG)
ACTIVATIONS = {None: lambda x: x, "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
laying = pytest.mark.skipif(not products.available(), reason="this torch has no oneDNN products on laid-out weights")


def held(made):
    return len(made._laid)


@pytest.mark.parametrize("rows", [1, pytest.param(products.WORTH, marks=laying)])
@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "plain"])
def test_products_are_torchs_own(rows, bias):
    made = products.Products()
    made.block(rows)
    for name, function in ACTIVATIONS.items():
        torch.testing.assert_close(made.linear(ROWS, WEIGHT, bias, name), function(F.linear(ROWS, WEIGHT, bias)), rtol=1e-5, atol=1e-5)
    times = torch.randn(3, 7, 40, generator=RNG)
    torch.testing.assert_close(made.linear(ROWS, WEIGHT, bias, times=times), F.linear(ROWS, WEIGHT, bias) * times, rtol=1e-5, atol=1e-5)
    strided = torch.randn(24, 40, generator=RNG)
    torch.testing.assert_close(made.linear(ROWS[:, 2:], strided.mT, bias), F.linear(ROWS[:, 2:], strided.mT, bias), rtol=1e-5, atol=1e-5)
    assert held(made) == (2 if rows > 1 else 0)


@laying
def test_a_blocks_weights_are_laid_out_once_and_let_go():
    made = products.Products()
    made.block(products.WORTH)
    for _ in range(3):
        made.linear(ROWS, WEIGHT)
        made.linear(ROWS, WEIGHT[:20])
    assert held(made) == 2
    made.block(products.WORTH)
    assert held(made) == 0


def test_fp64_is_left_to_torch():
    made = products.Products()
    made.block(products.WORTH)
    got = made.linear(ROWS.double(), WEIGHT.double(), BIAS.double(), "silu")
    torch.testing.assert_close(got, F.silu(F.linear(ROWS.double(), WEIGHT.double(), BIAS.double())), rtol=1e-13, atol=1e-13)
    assert held(made) == 0
