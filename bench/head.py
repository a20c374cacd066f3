"""The loss head, forward and backward: every divergence against its own matrix products, dense forms and TRL's.

`python -m bench.head` prints the table; `python -m bench.head memory NAME N` one peak, for a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec

import torch

from bench.measure import held_mb, in_own_process, interleaved, peak_mb, report
from distill.losses import Divergence, build, fused, names
from distill.losses.trainable import TrainableDivergence
from distill.training.estimate import free_memory

N, V, D, D_TEACHER = 1024, 50257, 768, 1600
ASKED = dict.fromkeys(("fkl", "rkl", "jsd", "skl", "srkl", "tvd", "ab", "weighted"), 1.15)
OTHERS = 1.35
COPIES = 16  # of the whole logits that TRL's dense JSD holds, about


class Inputs:
    """Hidden states and heads of the shape, drawn so that the teacher is as peaked as a language model's."""

    def __init__(self, n: int):
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.hidden = torch.randn(n, D, device=device, requires_grad=True)
        self.weight = torch.randn(V, D, device=device).mul_(0.1).requires_grad_()
        self.theirs = torch.randn(n, D_TEACHER, device=device)
        self.their_weight = torch.randn(V, D_TEACHER, device=device).mul_(0.1)
        self.targets = torch.randint(0, V, (n,), device=device)
        self.divergences: dict[str, Divergence] = {}

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def divergence(self, name: str) -> Divergence:
        """Made once: the parameters of one that has its own are inputs too."""
        if name not in self.divergences:
            self.divergences[name] = made = build(name)
            if isinstance(made, TrainableDivergence):
                made.prepare(V, self.hidden.device)
        made = self.divergences[name]
        if isinstance(made, TrainableDivergence):
            made.zero_grad()
        return made


def ours(inputs: Inputs, name: str) -> None:
    inputs.clear()
    divergence = inputs.divergence(name)
    targets = inputs.targets if divergence.reads_targets else None
    total = fused(divergence, inputs.hidden, inputs.weight, inputs.theirs, inputs.their_weight, targets=targets)
    total.backward()


def products(inputs: Inputs) -> None:
    """The four matrix products that no loss head can do without, of whole matrices."""
    with torch.no_grad():
        logits = inputs.hidden @ inputs.weight.T
        inputs.theirs @ inputs.their_weight.T
        logits @ inputs.weight
        logits.T @ inputs.hidden


def dense(inputs: Inputs) -> None:
    """Forward KL by autograd over whole logits, as published code computes it."""
    inputs.clear()
    logits = (inputs.hidden @ inputs.weight.T).log_softmax(-1)
    p = (inputs.theirs @ inputs.their_weight.T).softmax(-1)
    (-(p * logits).sum()).backward()


def trl_dense(inputs: Inputs) -> None:
    """TRL's generalised JSD over whole logits, as its GKDTrainer has it."""
    from trl.experimental.gkd import GKDTrainer

    inputs.clear()
    student, teacher = inputs.hidden @ inputs.weight.T, inputs.theirs @ inputs.their_weight.T
    GKDTrainer.generalized_jsd_loss(student.unsqueeze(0), teacher.unsqueeze(0), beta=0.5).backward()


def trl_chunked(inputs: Inputs) -> None:
    """TRL's chunked JSD, as its DistillationTrainer has it."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    inputs.clear()
    every = torch.ones(1, len(inputs.hidden), device=inputs.hidden.device)
    loss, *_ = _chunked_divergence_loss(
        inputs.hidden.unsqueeze(0), inputs.theirs.unsqueeze(0), inputs.weight, inputs.their_weight, every, beta=0.5
    )
    loss.backward()


def liger(inputs: Inputs) -> None:
    """Liger's fused JSD; its kernels are Triton's, so on a GPU alone."""
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    inputs.clear()
    loss = LigerFusedLinearJSD(jsd_beta=0.5)
    loss(inputs.hidden, inputs.weight, inputs.theirs, inputs.their_weight, inputs.targets).backward()


BASELINES: dict[str, Callable[[Inputs], None]] = {
    "dense fkl": dense, "TRL dense jsd": trl_dense, "TRL chunked jsd": trl_chunked,
    **({"Liger jsd": liger} if torch.cuda.is_available() and find_spec("liger_kernel") else {}),
}  # fmt: skip


def main() -> None:
    inputs, flops = Inputs(N), 2.0 * N * V * (3 * D + D_TEACHER)
    seconds: dict[str, float] = {}
    for name in names():  # each beside the products, within seconds of each other
        pair = interleaved({name: lambda name=name: ours(inputs, name), "products": lambda: products(inputs)}, 2)  # type: ignore[misc]
        seconds[name], seconds[f"products/{name}"] = pair[name], pair["products"]
        print(f"{name}: {pair[name]:.2f} s, {pair[name] / pair['products']:.2f} of its products", flush=True)
    plain = interleaved({"mm": lambda: torch.mm(inputs.hidden.detach(), inputs.weight.detach().T)}, 3)["mm"]
    others = interleaved({k: lambda run=run: run(inputs) for k, run in BASELINES.items()}, 2)  # type: ignore[misc]
    best = min(v for k, v in seconds.items() if k.startswith("products/"))
    rows: list[dict[str, object]] = []
    for name in [*names(), *BASELINES]:
        at_1k, at_8k = (_peak(name, n) for n in (N, 8 * N))
        taken = seconds[name] if name in seconds else others[name]
        base = seconds.get(f"products/{name}", best)
        rows.append({
            "loss": name, "seconds": taken, "products s": base, "products GFLOP/s": flops / base / 1e9,
            "ratio": taken / base, "asked": "" if name in BASELINES else str(ASKED.get(name, OTHERS)),
            "peak MB, N=1024": at_1k, "peak MB, N=8192": at_8k,
        })  # fmt: skip
    speed = f"one product {2.0 * N * V * D / plain / 1e9:.0f} GFLOP/s"
    report("head", f"Loss head, forward and backward, N={N}, V={V}, d={D} and {D_TEACHER}, fp32; {speed}", rows)


def _peak(name: str, n: int) -> float | str:
    """MB above the inputs; dense forms that would not fit into the memory at hand are not tried."""
    if name.endswith("dense jsd") and COPIES * 4 * n * V > free_memory():
        return f"more than {free_memory() / 2**20:.0f} free"
    return in_own_process("bench.head", "memory", name, str(n))[0]


def memory(name: str, n: int) -> None:
    inputs = Inputs(n)
    if name not in BASELINES:
        inputs.divergence(name)
    before = held_mb()
    BASELINES[name](inputs) if name in BASELINES else ours(inputs, name)
    print(peak_mb() - before)


if __name__ == "__main__":
    memory(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["memory"] else main()
