"""The loss head, forward and backward: every divergence against its own matrix products, dense forms and TRL's.

`python -m bench.head` prints the times, `python -m bench.head peaks` the memory. `python -m bench.head bf16` prints the
times with bf16 factors, which `train.precision=bf16` has: on a GPU, or on a processor with bf16 instructions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec

import torch

from bench.measure import held_mb, in_own_process, interleaved, met, peak_mb, report
from distill.losses import Divergence, build, fused, names
from distill.losses.trainable import TrainableDivergence
from distill.training.estimate import free_memory

N, V, D, D_TEACHER = 1024, 50257, 768, 1600
ASKED = dict.fromkeys(("fkl", "rkl", "jsd", "skl", "srkl", "tvd", "ab", "weighted"), 1.15)
OTHERS = 1.35
FLOOR = 0.8  # of plain torch.mm's speed that the products must reach for a ratio over them to count
PEAK_MIB = 0.35e9 / 2**20
COPIES = {"dense fkl": 8, "TRL dense jsd": 16}  # of the whole logits that are held, about


class Inputs:
    """Hidden states and heads of the shape, drawn so that the teacher is as peaked as a language model's."""

    def __init__(self, n: int, dtype: torch.dtype = torch.float32):
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.hidden = torch.randn(n, D, device=device).to(dtype).requires_grad_()
        self.weight = torch.randn(V, D, device=device).mul_(0.1).to(dtype).requires_grad_()
        self.theirs = torch.randn(n, D_TEACHER, device=device).to(dtype)
        self.their_weight = torch.randn(V, D_TEACHER, device=device).mul_(0.1).to(dtype)
        self.targets = torch.randint(0, V, (n,), device=device)
        self.divergences: dict[str, Divergence] = {}

    @cached_property
    def room(self) -> list[torch.Tensor]:
        n = len(self.hidden)
        shapes = (n, V), (n, V), (n, D), (V, D)
        return [torch.zeros(*shape, device=self.hidden.device, dtype=self.hidden.dtype) for shape in shapes]

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
    """The four matrix products that no loss head can do without, of whole matrices, into memory that is there."""
    student, teacher, hidden, weight = inputs.room
    with torch.no_grad():
        torch.mm(inputs.hidden, inputs.weight.T, out=student)
        torch.mm(inputs.theirs, inputs.their_weight.T, out=teacher)
        torch.mm(student, inputs.weight, out=hidden)
        torch.mm(student.T, inputs.hidden, out=weight)


def one_product(inputs: Inputs) -> None:
    """Plain torch.mm at the shape, which the four are held to."""
    with torch.no_grad():
        torch.mm(inputs.hidden, inputs.weight.T, out=inputs.room[0])


def dense(inputs: Inputs) -> None:
    """Forward KL by autograd over whole logits, as published code computes it."""
    inputs.clear()
    logits = (inputs.hidden @ inputs.weight.T).float().log_softmax(-1)
    p = (inputs.theirs @ inputs.their_weight.T).float().softmax(-1)
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
    "dense fkl": dense,
    **({"TRL dense jsd": trl_dense, "TRL chunked jsd": trl_chunked} if find_spec("trl") else {}),
    **({"Liger jsd": liger} if torch.cuda.is_available() and find_spec("liger_kernel") else {}),
}  # fmt: skip


def main(dtype: torch.dtype = torch.float32) -> None:
    inputs, flops = Inputs(N, dtype), 2.0 * N * V * (3 * D + D_TEACHER)
    runs: dict[str, Callable[[], None]] = {name: lambda name=name: ours(inputs, name) for name in names()}  # type: ignore[misc]
    runs |= {name: lambda run=run: run(inputs) for name, run in BASELINES.items()}  # type: ignore[misc]
    rows: list[dict[str, object]] = []
    for name, run in runs.items():  # each beside the products, within seconds of each other
        taken = interleaved({"run": run, "products": lambda: products(inputs), "mm": lambda: one_product(inputs)}, 4)
        ratio, asked = taken["run"] / taken["products"], ASKED.get(name, OTHERS)
        speed, plain = flops / taken["products"] / 1e9, 2.0 * N * V * D / taken["mm"] / 1e9
        judged = met(ratio <= asked) if speed >= FLOOR * plain else "baseline too slow"
        rows.append({
            "loss": name, "seconds": taken["run"], "products s": taken["products"], "ratio": ratio,
            **({"asked": "", "met": ""} if name in BASELINES else {"asked": str(asked), "met": judged}),
            "products GFLOP/s": speed, "mm GFLOP/s": plain,
        })  # fmt: skip
        print(f"{name}: {taken['run']:.2f} s, {ratio:.2f} of its products", flush=True)
    if "TRL dense jsd" not in BASELINES:
        print("TRL's losses: not run; they need pip install trl")
    if "Liger jsd" not in BASELINES:
        print("Liger's fused JSD: not run; its kernels need a GPU, and pip install liger-kernel")
    kept, named = ("head_bf16", "bf16") if dtype == torch.bfloat16 else ("head", "fp32")
    report(kept, f"Loss head, forward and backward, N={N}, V={V}, d={D} and {D_TEACHER}, {named}", rows)


def peaks() -> None:
    """Every form's peak, each in a process of its own."""
    rows: list[dict[str, object]] = []
    for name in [*names(), *BASELINES]:
        at_1k, at_8k = (_peak(name, n) for n in (N, 8 * N))
        rows.append(
            {
                "loss": name,
                "peak MiB, N=1024": at_1k,
                "peak MiB, N=8192": at_8k,
                "asked": "" if name in BASELINES else f"{PEAK_MIB:.0f}",
                "met": "" if name in BASELINES or isinstance(at_8k, str) else met(at_8k <= PEAK_MIB),
            }
        )
        print(*rows[-1].values(), flush=True)
    report("head_memory", f"Loss head, peak above its inputs, V={V}, d={D} and {D_TEACHER}, fp32", rows)


def _peak(name: str, n: int) -> float | str:
    """MiB above the inputs; dense forms that would not fit into the memory at hand are not tried."""
    if COPIES.get(name, 0) * 4 * n * V > free_memory():
        return f"does not fit into {free_memory() / 2**20:.0f}"
    return in_own_process("bench.head", "memory", name, str(n))[0]


def memory(name: str, n: int) -> None:
    inputs = Inputs(n)
    if name not in BASELINES:
        inputs.divergence(name)
    before = held_mb()
    BASELINES[name](inputs) if name in BASELINES else ours(inputs, name)
    print(peak_mb() - before)


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        memory(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:] == ["peaks"]:
        peaks()
    else:
        main(torch.bfloat16 if sys.argv[1:] == ["bf16"] else torch.float32)
