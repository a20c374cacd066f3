"""What is done otherwise on a GPU: products of bf16 factors in fp32, streams drawn on the device, its peak memory."""

from __future__ import annotations

import pytest
import torch

from distill.generation.decode import RowStream
from distill.losses import build, fused, names

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def inputs(n=257, classes=1003, dtype=torch.bfloat16):
    torch.manual_seed(0)
    shapes = (n, 64), (classes, 64), (n, 96), (classes, 96)
    scales = (1.0, 0.2, 1.0, 0.2)
    given = [(torch.randn(s) * scale).to("cuda", dtype) for s, scale in zip(shapes, scales, strict=True)]
    return given, torch.randint(0, classes, (n,), device="cuda")


@pytest.mark.parametrize("name", [n for n in names() if n != "skd"])  # skd draws weights of its own
def test_bf16_factors_multiply_to_fp32_logits(name):
    """Against float64 over the same rounded numbers: bf16 logits would be wrong by 1e-3, fp32 ones are not."""
    (hidden, weight, theirs, their_weight), targets = inputs()
    exact = fused(
        build(name), hidden.double(), weight.double(), theirs.double(), their_weight.double(), targets=targets
    )
    found = fused(build(name), hidden, weight, theirs, their_weight, targets=targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=1e-4)


def test_gradients_of_bf16_factors_are_summed_in_fp32():
    (hidden, weight, theirs, their_weight), _ = inputs()
    wide = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    wanted = torch.autograd.grad(fused(build("ab"), *wide, theirs.double(), their_weight.double()), wide)
    ours = [hidden.float().requires_grad_(), weight.float().requires_grad_()]
    with torch.autocast("cuda", torch.bfloat16):
        value = fused(build("ab"), *ours, theirs, their_weight, chunk_tokens=64)
    for a, b in zip(torch.autograd.grad(value, ours), wanted, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() < 0.01 * b.norm()


def test_a_rows_stream_on_the_device_is_its_own():
    def drawn(seed):
        numbers = torch.empty(1000, device="cuda")
        RowStream(f"{seed}/dolly/one", "cuda").fill(numbers)
        return numbers

    assert torch.equal(drawn(10), drawn(10)) and not torch.equal(drawn(10), drawn(20))
    assert 0.9 < float(drawn(10).mean()) < 1.1


def test_peak_memory_is_flat_in_tokens():
    peaks = []
    for n in (2048, 16384):
        (hidden, weight, theirs, their_weight), _ = inputs(n, 20000)
        hidden.requires_grad_(), weight.requires_grad_()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fused(build("ab"), hidden, weight, theirs, their_weight, chunk_tokens=1024).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before - hidden.numel() * 6)
    assert peaks[1] < 1.1 * peaks[0]
