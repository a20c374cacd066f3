"""The replacements that `debug=smoke` makes in a config, whatever the other groups say."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.config.schema import Config


def apply_smoke(config: Config) -> Config:
    """The config with small random models on a few generated rows, trained for three optimizer steps per stage.

    The models have two layers and the pair's architecture. Kept from `config` are architecture, tokenizer convention,
    LoRA, loss, sampler, preset, tracker, precision, decoding and seeds. Replaced are weights, data sets, and every
    size that costs time.
    """
    from distill.config.data import DataConfig, GeneratorConfig, SplitConfig
    from distill.config.evaluation import WHEEL, BertScoreConfig
    from distill.config.model import WeightsConfig

    sets = list(config.eval.sets or config.data.eval)
    data = DataConfig(
        name="smoke",
        title="Smoke (generated, no meaning)",
        root=None,
        template=config.data.template,
        generator=GeneratorConfig(seed=1, train=21, valid=6, eval=4),
        chunker="micro",
        prune=config.data.prune,
        train=SplitConfig(),
        valid=SplitConfig(),
        eval={name: SplitConfig(title=config.data.eval[name].title) for name in sets},
        pretrain=config.data.pretrain if config.data.corpus and config.data.corpus.file else "off",
    )
    pruned = config.model.student.keep_layers is not None
    model = config.model.model_copy(
        update={
            "source": "scratch",
            "vocab_size": 400,
            "teacher": WeightsConfig(hidden=48, layers=3 if pruned else 2, heads=2),
            "student": WeightsConfig(keep_layers=2) if pruned else WeightsConfig(hidden=32, layers=2, heads=2),
        }
    )
    stage = {"epochs": 1, "global_batch_size": 8, "warmup_steps": None}
    train = config.train.model_copy(
        update={
            "teacher": config.train.teacher.model_copy(update=stage),
            "start": config.train.start.model_copy(update={**stage, "epochs": min(1, config.train.start.epochs)}),
            "student": config.train.student.model_copy(update=stage),
            **{
                name: other.model_copy(update=stage)
                for name in ("sft", "rollout")
                if (other := getattr(config.train, name))
            },
            "micro_batch_size": 4,
            "warmup_steps": 0,
            "max_length": 512,
            "max_prompt_length": 384,
        }
    )
    sizes = {"max_new_tokens": 8, "rollouts": 16, "passes": 1, "capacity": 16}
    fewer = {k: v for k, v in sizes.items() if k in config.sampler.parameters}
    sampler = config.sampler.model_copy(update=fewer)
    small = {"max_new_tokens": 8, "batch_tokens": 16384, "sets": sets}
    if config.eval.bertscore.encoder != WHEEL:  # any other encoder may need the hub
        small["bertscore"] = BertScoreConfig(encoder=None)
    evaluation = config.eval.model_copy(update=small)
    replaced = {"data": data, "model": model, "train": train, "eval": evaluation, "sampler": sampler}
    return config.model_copy(update=replaced)
