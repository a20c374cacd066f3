"""The chunked loss head gives the dense form's value and gradients, whatever the chunks, and holds no logits."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import REFERENCES, softmax

from distill.losses import Head, build, fused, names

N, V, D, D_TEACHER = 23, 37, 8, 12


def draw(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def given():
    """Hidden states, heads and targets; what is differentiated requires it."""
    return {
        "hidden": draw(N, D, seed=1).requires_grad_(),
        "weight": draw(V, D, seed=2).requires_grad_(),
        "bias": draw(V, seed=3).requires_grad_(),
        "theirs": draw(N, D_TEACHER, seed=4),
        "their_weight": draw(V, D_TEACHER, seed=5) / 2,
        "targets": torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(6)),
    }


def dense(divergence, logits, teacher_logits, targets, w_ce, w_kd, temperature=1.0):
    ce = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    width = min(logits.shape[-1], teacher_logits.shape[-1])
    q, p = logits[:, :width] / temperature, teacher_logits[:, :width] / temperature
    kd = divergence(q, p, targets).sum()
    return w_ce * ce + w_kd * kd, ce, kd


def compare(given, ours, expected):
    """Value and the gradients by all that requires one, after a scaling that a trainer would do."""
    leaves = [x for x in given.values() if x.requires_grad]
    torch.testing.assert_close(ours, expected)
    wanted = torch.autograd.grad(expected / 7, leaves, allow_unused=True)
    for got, want in zip(torch.autograd.grad(ours / 7, leaves, allow_unused=True), wanted, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("chunk", [1, 5, 64])
@pytest.mark.parametrize("name", [*names(), "alphanet per batch"])
def test_fused_is_dense(name, chunk, given):
    divergence = build("alphanet", per="batch") if name == "alphanet per batch" else build(name)
    logits = given["hidden"] @ given["weight"].T
    teacher_logits = given["theirs"] @ given["their_weight"].T
    expected, ce, kd = dense(divergence, logits, teacher_logits, given["targets"], 0.3, 0.7, 2.0)
    parts: dict[str, torch.Tensor] = {}
    ours = fused(
        divergence, given["hidden"], given["weight"], given["theirs"], given["their_weight"], chunk,
        given["targets"], w_ce=0.3, w_kd=0.7, temperature=2.0, parts=parts,
    )  # fmt: skip
    compare(given, ours, expected)
    torch.testing.assert_close(parts["ce_sum"], ce.detach())
    torch.testing.assert_close(parts["kd_sum"], kd.detach())


def test_bias_scale_and_softcap(given):
    raw = (given["hidden"] @ given["weight"].T + given["bias"]) * 0.5
    theirs = 3 * torch.tanh((given["theirs"] @ given["their_weight"].T) / 3)
    expected, *_ = dense(build("rkl"), 4 * torch.tanh(raw / 4), theirs, given["targets"], 0.5, 1.0)
    ours = fused(
        build("rkl"), given["hidden"], Head(given["weight"], given["bias"], scale=0.5, softcap=4.0), given["theirs"],
        Head(given["their_weight"], softcap=3.0), 6, given["targets"], w_ce=0.5,
    )  # fmt: skip
    compare(given, ours, expected)


@pytest.mark.parametrize("extra", [-4, 4])
@pytest.mark.parametrize("w_ce", [0.0, 0.5])
def test_vocabularies_of_other_widths(given, extra, w_ce):
    weight = draw(V + extra, D_TEACHER, seed=7)
    targets = given["targets"].clamp(max=V - 5)
    logits = given["hidden"] @ given["weight"].T
    expected, *_ = dense(build("fkl"), logits, given["theirs"] @ weight.T, targets, w_ce, 1.0)
    ours = fused(build("fkl"), given["hidden"], given["weight"], given["theirs"], weight, 4, targets, w_ce=w_ce)
    compare(given, ours, expected)


def test_cross_entropy_alone(given):
    expected = torch.nn.functional.cross_entropy(given["hidden"] @ given["weight"].T, given["targets"], reduction="sum")
    parts: dict[str, torch.Tensor] = {}
    ours = fused(
        None, given["hidden"], given["weight"], targets=given["targets"], w_ce=1.0, chunk_tokens=4, parts=parts
    )
    compare(given, ours, expected)
    assert set(parts) == {"ce_sum"}


def test_a_frozen_head_costs_no_gradient_product(given):
    given["weight"].requires_grad_(False)
    with torch.profiler.profile() as profile:
        total = fused(
            build("fkl"), given["hidden"], given["weight"], given["theirs"], given["their_weight"], chunk_tokens=N
        )
        total.backward()
    products = sum(e.count for e in profile.key_averages() if e.key in ("aten::mm", "aten::addmm_"))
    assert products == 3  # two heads, and the gradient of the hidden states
    expected = build("fkl")(given["hidden"] @ given["weight"].T, given["theirs"] @ given["their_weight"].T).sum()
    (wanted,) = torch.autograd.grad(expected, given["hidden"])
    torch.testing.assert_close(given["hidden"].grad, wanted)


def test_a_divergence_with_parameters_of_its_own(given):
    """Their gradients too are those of the dense form, summed over chunks; and value and network by numpy."""
    torch.manual_seed(0)
    divergence = build("skd").double()
    divergence.prepare(V, torch.device("cpu"))
    divergence.double()
    torch.nn.init.normal_(divergence.write.weight)
    given |= dict(divergence.named_parameters())
    logits, theirs = given["hidden"] @ given["weight"].T, given["theirs"] @ given["their_weight"].T
    expected = 0.7 * divergence(logits, theirs).sum()
    ours = fused(divergence, given["hidden"], given["weight"], given["theirs"], given["their_weight"], 5, w_kd=0.7)
    compare(given, ours, expected)
    again = fused(divergence, given["hidden"], given["weight"], given["theirs"], given["their_weight"], 9, w_kd=0.7)
    compare(given, again, 0.7 * divergence(given["hidden"] @ given["weight"].T, theirs).sum())
    p, q = (softmax(x[3].detach()) for x in (theirs, logits))
    read, attend, write = (getattr(divergence, k).weight.detach().numpy() for k in ("read", "attend", "write"))
    slots = (read @ p).reshape(8, 8)
    query, key, value = np.split(slots @ attend.T + divergence.attend.bias.detach().numpy(), 3, axis=1)
    scores = np.exp(query @ key.T / np.sqrt(8))
    mixed = slots + scores / scores.sum(1, keepdims=True) @ value
    simple = softmax(np.log(p) + write @ mixed.ravel())
    assert float(divergence(logits, theirs)[3].detach()) == pytest.approx(REFERENCES["fkl"](simple, q), rel=1e-9)


def test_no_gradient_is_formed_where_none_is_wanted(given):
    with torch.inference_mode(), torch.profiler.profile() as profile:
        total = fused(build("akl"), given["hidden"], given["weight"], given["theirs"], given["their_weight"])
    expected = build("akl")(given["hidden"] @ given["weight"].T, given["theirs"] @ given["their_weight"].T).sum()
    torch.testing.assert_close(total, expected.detach())
    assert sum(e.count for e in profile.key_averages() if e.key == "aten::mm") == 2  # the two heads


def test_no_tokens_and_one_backward(given):
    """A batch without a target gives 0 and zero gradients, in both forms; gradients are formed once."""
    none = given["hidden"].detach()[:0].requires_grad_()
    for name in names():
        args = (none, given["weight"], given["theirs"][:0], given["their_weight"])
        total = fused(build(name), *args, targets=given["targets"][:0])
        assert total.item() == 0
        weight, hidden = torch.autograd.grad(total, [given["weight"], none])
        assert not weight.any() and hidden.shape == none.shape
        assert build(name)(torch.zeros(0, V), torch.zeros(0, V), given["targets"][:0]).shape == (0,)
    total = fused(build("fkl"), given["hidden"], given["weight"], given["theirs"], given["their_weight"])
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


def test_heads_of_families_are_the_models_own():
    """Scale and softcap as configs name them, against each model's own logits; a head that does more is refused."""
    import transformers as tf

    from distill.base.errors import UserError
    from distill.models.load import check_head, last_hidden, output_head

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}  # fmt: skip
    own: dict[str, dict] = {"Gemma2": {"final_logit_softcapping": 2.0}, "Granite": {"logits_scaling": 4.0},
                            "Cohere": {"logit_scale": 0.25}, "Llama": {}, "Qwen2": {}}  # fmt: skip
    ids = torch.randint(0, 64, (1, 7))
    for family, extra in own.items():
        torch.manual_seed(0)
        config = getattr(tf, f"{family}Config")(**sizes, **extra)
        model = getattr(tf, f"{family}ForCausalLM")(config).eval()
        with torch.no_grad():
            ours = output_head(model)(last_hidden(model, ids, torch.ones_like(ids))[0])
            torch.testing.assert_close(ours, model(ids).logits[0], rtol=1e-4, atol=1e-5)
        check_head(model)
        model.get_output_embeddings().register_forward_hook(lambda *a: a[-1] * 3)
        with pytest.raises(UserError, match="not supported"):
            check_head(model)


def test_autocast_rounds_products_alone(given):
    """Under bf16 autocast the sums differ by rounding of the logits, and gradients come in the parameters' dtype."""
    given = {k: (v.detach().float() if v.is_floating_point() else v) for k, v in given.items()}
    hidden, weight = given["hidden"].requires_grad_(), given["weight"].requires_grad_()
    their_weight = given["their_weight"].bfloat16()
    exact = fused(build("ab"), hidden, weight, given["theirs"], their_weight.float())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = fused(build("ab"), hidden, weight, given["theirs"], their_weight)
    wanted, got = torch.autograd.grad(exact, [hidden, weight]), torch.autograd.grad(rounded, [hidden, weight])
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() < 0.03 * b.norm()


def test_what_belongs_together(given):
    with pytest.raises(ValueError, match="teacher_hidden"):
        fused(build("fkl"), given["hidden"], given["weight"])
    with pytest.raises(ValueError, match="targets"):
        fused(None, given["hidden"], given["weight"], w_ce=1.0)
    pair = (given["hidden"], given["weight"], given["theirs"], given["their_weight"])
    with pytest.raises(ValueError, match="teacher_hidden has 22 rows, student_hidden 23"):
        fused(build("fkl"), *pair[:2], given["theirs"][1:], pair[3])
    with pytest.raises(ValueError, match="targets has 1 rows"):
        fused(build("fkl"), *pair, targets=given["targets"][:1], w_ce=1.0)
    for wrong in ({"temperature": 0.0}, {"chunk_tokens": -1}):
        with pytest.raises(ValueError, match="must be positive"):
            fused(build("fkl"), *pair, **wrong)
    with pytest.raises(ValueError, match="targets"):
        fused(build("dkd"), given["hidden"], given["weight"], given["theirs"], given["their_weight"])


PEAK = """
import sys, torch
from distill.losses import build, fused
torch.set_num_threads(1)
n, v, d = int(sys.argv[1]), 20000, 16
def run(n):
    hidden = torch.randn(n, d, requires_grad=True)
    weight = torch.randn(v, d, requires_grad=True)
    targets = torch.randint(0, v, (n,))
    fused(build(sys.argv[2]), hidden, weight, torch.randn(n, d), torch.randn(v, d), targets=targets).backward()
def peak():  # not getrusage's, which a process inherits from the one that started it
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
run(1024)
before = peak()
run(n)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", names())
def test_memory_does_not_grow_with_tokens(name):
    """8,192 tokens hold no more than 1,024 do but their own hidden states; dense logits would be 1.3 GB."""
    done = subprocess.run([sys.executable, "-c", PEAK, "8192", name], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150  # MB; what the allocator keeps varies by half of it


FAULTS = """
import resource, torch
from distill.losses import build, fused
torch.set_num_threads(1)
n, v, d = 512, 20000, 16
given = [torch.randn(n, d, requires_grad=True), torch.randn(v, d), torch.randn(n, d), torch.randn(v, d)]
def run():
    fused(build("ab"), *given).backward()
run(), run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (2 * 4 * n * v))
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc")
def test_the_passes_over_the_vocabulary_get_no_fresh_memory():
    """Handed to the system, the buffer of logits and each block's temporaries would be got anew, many times."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.2  # of the logits' bytes
