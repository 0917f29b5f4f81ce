"""Lines with gradients of their own: the values of the formula, the gradients of the values."""

import pytest
import torch

from hydraprune.bounds.nonlinear import Lines


def parallel(dtype):
    generator = torch.Generator().manual_seed(0)
    slope, intercept = (torch.rand(3, 4, 5, dtype=dtype, generator=generator) for _ in range(2))
    rows = torch.randn(3, 2, 4, 5, dtype=dtype, generator=generator)
    return rows, slope, intercept


def pulled(rows, slope, intercept):
    return Lines(slope.unsqueeze(1), slope, intercept, slope > 0, parallel=True).pull(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parallel_lines_lose_the_intercept_below_where_a_is_negative_and_above_where_it_is_positive(dtype):
    rows, slope, intercept = parallel(dtype)
    replaced, low, high = pulled(rows, slope, intercept)
    torch.testing.assert_close(replaced, rows * slope[:, None])
    torch.testing.assert_close(low, ((-rows).clamp(min=0) * intercept[:, None]).sum((2, 3)))
    torch.testing.assert_close(high, (rows.clamp(min=0) * intercept[:, None]).sum((2, 3)))


def test_the_gradients_of_parallel_lines_are_those_of_their_values():
    inputs = [tensor.requires_grad_() for tensor in parallel(torch.float64)]
    assert torch.autograd.gradcheck(pulled, inputs)
