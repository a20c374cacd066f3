"""Five generation seeds at once against transformers: passes of `generate`, and its continuous batching.

The same model, prompts, lengths and precision, both sampling. A pass of `generate` writes one seed; the published way
makes five, so its time counts five times (one is measured a turn, each turn another seed). Continuous batching has a
task of its own with fewer prompts: on a processor it takes minutes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig

from bench.measure import held_mb, in_own_process, made, met, peak_mb, report
from distill.base.memory import reset_peak
from distill.config import load
from distill.config.template import named
from distill.data.encode import Encoded, Encoder
from distill.generation.engine import generate
from distill.generation.requests import Decoding, Request, Response, stream_name
from distill.models.load import load_model, load_tokenizer
from distill.models.tokenizers import pad_id
from distill.pipeline.plan import Plan

PROMPTS, FEW, NEW, PUBLISHED_BATCH, PADDED = 64, 16, 128, 16, 256
SEEDS = (10, 20, 30, 40, 50)
BATCHES = (16, 32, 64)  # that `generate` is tried at for one seed
FIVE, ONE, A_FEW = "five seeds", "one seed", f"five seeds, {FEW} prompts"
ROUNDS = {FIVE: 3, ONE: 1, A_FEW: 1}  # turns, of which the best counts: more where what is asked is nearer
SMALL = 4096  # batch_tokens that the texts are compared at
BOUNDS, SETS = (4096, 16384), (16, 48)  # batch_tokens, and numbers of prompts, that memory is measured at
WORDS = ["model=smollm2", f"eval.max_new_tokens={NEW}", f"data.eval.dolly.limit={PROMPTS}"]


class Bench:
    """A model, prompts, and the ways to write their responses."""

    def __init__(self, precision: str) -> None:
        self.config = load([*WORDS, f"train.precision={precision}"])
        plan = Plan(self.config)
        weights = made(plan, plan.base("teacher"), "teacher")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = load_model(weights, dtype).to(device).eval()
        self.tokenizer = load_tokenizer(weights)
        encoder = Encoder(self.tokenizer, named("alpaca"), self.config.train.max_prompt_length, "cut")
        self.prompts = encoder.prompts(plan.sets["dolly"].examples).rows
        self.pad = pad_id(self.tokenizer)
        self.settings = GenerationConfig(
            max_new_tokens=NEW, do_sample=True, top_k=0, pad_token_id=self.pad,
            eos_token_id=self.tokenizer.eos_token_id,
        )  # fmt: skip

    def ours(self, seeds: tuple[int, ...], prompts: int = PROMPTS) -> int:
        """Tokens written, EOS not counted."""
        return sum(len(response.tokens) for response in self.written(seeds, prompts, self.config.eval.batch_tokens))

    def written(self, seeds: tuple[int, ...], prompts: int, batch_tokens: int) -> list[Response]:
        decode = self.config.eval.model_copy(update={"batch_tokens": batch_tokens})
        requests = [
            Request(p.id, p.prompt, stream_name(seed, "dolly", p.id), NEW)
            for p in self.prompts[:prompts]
            for seed in seeds
        ]
        return generate(self.model, requests, Decoding(decode, self.tokenizer.eos_token_id, self.pad))

    def passes(self, seed: int, batch: int, padded: int | None) -> int:
        """One pass of `generate` in batches of like length, left-padded to `padded` or the batch's longest."""
        torch.manual_seed(seed)
        rows = sorted(self.prompts, key=lambda p: len(p.prompt)) if padded is None else self.prompts
        written = 0
        for start in range(0, len(rows), batch):
            ids, mask = self._left_padded(rows[start : start + batch], padded)
            out = self.model.generate(ids, attention_mask=mask, generation_config=self.settings)
            written += int((out[:, ids.shape[1] :] != self.pad).sum())
        return written

    def continuous(self) -> int:
        """transformers' continuous batching: paged cache, shared prefixes, five sequences a prompt."""
        settings = GenerationConfig(**{**self.settings.to_dict(), "num_return_sequences": len(SEEDS)})
        done = self.model.generate_batch([p.prompt for p in self.prompts[:FEW]], generation_config=settings)
        return sum(len(output.generated_tokens) for output in done.values())

    def _left_padded(self, rows: list[Encoded], padded: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        longest = padded or max(len(r.prompt) for r in rows)
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, longest - len(row.prompt) :] = torch.tensor(row.prompt)
            mask[i, longest - len(row.prompt) :] = 1
        return ids.to(self.model.device), mask.to(self.model.device)


def main(precision: str = "fp32") -> None:
    bench = Bench(precision)
    bench.ours((10,), 2)  # warm up
    published, longest = (f"generate, batch {PUBLISHED_BATCH}, padded to {to}" for to in (PADDED, "the longest"))
    runs: dict[tuple[str, str], tuple[float, Callable[[int], int]]] = {
        (FIVE, "ours"): (1, lambda turn: bench.ours(SEEDS)),
        (FIVE, published): (5, lambda turn: bench.passes(SEEDS[turn], PUBLISHED_BATCH, PADDED)),
        (FIVE, longest): (5, lambda turn: bench.passes(SEEDS[turn], PUBLISHED_BATCH, None)),
        (ONE, "ours"): (1, lambda turn: bench.ours(SEEDS[turn : turn + 1])),
        **{(ONE, f"generate, batch {b}"): (1, lambda turn, b=b: bench.passes(SEEDS[turn], b, None)) for b in BATCHES},
        (A_FEW, "ours"): (1, lambda turn: bench.ours(SEEDS, FEW)),
        (A_FEW, "continuous batching"): (1, lambda turn: bench.continuous()),
    }  # type: ignore[misc]  # fmt: skip
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for turn in range(max(ROUNDS.values())):
        for name, (times, run) in runs.items():
            if turn >= ROUNDS[name[0]]:
                continue
            started = time.perf_counter()
            tokens = run(turn)
            seconds = times * (time.perf_counter() - started)
            found = (seconds, times * tokens / seconds)
            best[name] = min(best.get(name, found), found)
            print(*name, f"{seconds:.1f} s, {found[1]:.0f} tokens/s", flush=True)
    asked = {(FIVE, published): 4, (FIVE, longest): 2} | {(ONE, f"generate, batch {b}"): 1 for b in BATCHES}
    rows: list[dict[str, Any]] = []
    for (task, engine), (seconds, speed) in best.items():
        ratio, wanted = seconds / best[task, "ours"][0], asked.get((task, engine))
        judged = {"asked": str(wanted), "met": met(ratio >= wanted)} if wanted else {"asked": "", "met": ""}
        rows.append(
            {"task": task, "engine": engine, "seconds": seconds, "tokens/s": speed, "its time over ours": ratio}
            | judged
        )
    title = f"{PROMPTS} prompts of Dolly, {NEW} new tokens, smollm2, {precision}"
    report("generate" if precision == "fp32" else f"generate_{precision}", title, rows)


def equal() -> None:
    """How many texts are the same whatever the batch size: all in fp32 but for near ties, fewer where bf16 rounds."""
    rows = []
    for precision in ("fp32", "bf16"):
        bench = Bench(precision)
        several = [bench.written(SEEDS, PROMPTS, tokens) for tokens in (bench.config.eval.batch_tokens, SMALL)]
        same = [a.tokens == b.tokens for a, b in zip(*several, strict=True)]
        rows.append(
            {
                "precision": precision, "texts": len(same), "equal %": 100 * sum(same) / len(same),
                "draws": sum(len(a.tokens) for a in several[0]), "near ties": sum(a.ties for a in several[0]),
            }
        )  # fmt: skip
    title = f"Texts at batch_tokens={bench.config.eval.batch_tokens} and {SMALL}, {NEW} new tokens, smollm2"
    report("generate_equal", title, rows)


def peaks() -> None:
    """Peak memory by `batch_tokens` and number of prompts, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    for bound in BOUNDS:
        several = [in_own_process("bench.generate", "memory", str(bound), str(prompts)) for prompts in SETS]
        peaks_found = {f"peak MiB, {n} prompts": peak for n, (peak, _) in zip(SETS, several, strict=True)}
        rows.append({"batch_tokens": str(bound), "their keys and values MiB": several[0][1], **peaks_found})
        print(*rows[-1].values(), flush=True)
    report("generate_memory", f"Five seeds, {NEW} new tokens, smollm2, fp32: peak above the model", rows)


def memory(batch_tokens: int, prompts: int) -> None:
    """Print the peak above the model, and what the keys and values of so many columns take, in MiB."""
    bench = Bench("fp32")
    config = bench.model.config
    a_column = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    bench.written(SEEDS[:1], 1, batch_tokens)  # the weights are mapped, and come in when they are read first
    reset_peak()
    before = held_mb()
    bench.written(SEEDS, prompts, batch_tokens)
    print(peak_mb() - before, batch_tokens * a_column / 2**20)


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        memory(int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:] in (["equal"], ["peaks"]):
        {"equal": equal, "peaks": peaks}[sys.argv[1]]()
    else:
        main(*sys.argv[1:])
