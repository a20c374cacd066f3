"""The sections that say what is learned: `loss`, `sampler`, `method` and `preset`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, model_validator

from distill.base.registry import LOSSES, SAMPLERS, Registry
from distill.config import neutral
from distill.config.section import Natural, NotNegative, Positive, Section


class RegisteredConfig(Section):
    """A registered class by name; further keys are its own parameters."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)

    registry: ClassVar[Registry[Any]]

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The class's own parameters."""
        return dict(self.model_extra or {})

    @property
    def switches(self) -> dict[str, Any]:
        """Those of them that choose between ours and published code, at ours."""
        return self.registry.switches(self.name)

    @property
    def chosen(self) -> dict[str, Any]:
        """The parameters that tell it apart: a switch between ours and published code counts where it is on."""
        return self.registry.chosen(self.name, self.parameters)


class LossOptimizerConfig(Section):
    """How a divergence's own parameters, such as a small network's, are trained; null is as the student's.

    Attributes:
        lr: the learning rate at the schedule's top; the schedule's shape and warm-up are the student's.
        weight_decay: of AdamW, on weights (not on biases).
        max_grad_norm: the limit that the norm of their gradients is clipped to, apart from the student's. With null
            they are clipped together with the student's, by one norm.
    """

    lr: Positive | None = None
    weight_decay: NotNegative | None = None
    max_grad_norm: Positive | None = None


AS_STUDENT = LossOptimizerConfig()


class LossConfig(RegisteredConfig):
    """Objective `w_ce * CE + w_kd * divergence`; further keys are the divergence's own parameters.

    `w_lm` weighs the cross-entropy of `data.pretrain`, where that is given.
    """

    registry = LOSSES

    w_ce: NotNegative
    w_kd: NotNegative
    temperature: Positive
    w_lm: NotNegative = 1.0
    optimizer: LossOptimizerConfig = AS_STUDENT

    @property
    def switches(self) -> dict[str, Any]:
        """See the base class. `sft` is no class and has none."""
        return {} if self.name == "sft" else super().switches

    @property
    def chosen(self) -> dict[str, Any]:
        """See the base class."""
        return {} if self.name == "sft" else super().chosen

    @property
    def determining(self) -> dict[str, Any]:
        """All that a result depends on."""
        return {**neutral.determining(self), **self.chosen}

    @model_validator(mode="after")
    def _known(self) -> LossConfig:
        if self.w_ce == 0 and self.w_kd == 0:
            raise ValueError("w_ce and w_kd are both 0; at least one must be larger")
        if self.name == "sft":
            if self.w_kd or self.parameters or self.optimizer != AS_STUDENT:
                raise ValueError("sft has no divergence: w_kd must be 0 and nothing but w_ce is set")
            return self
        LOSSES.build(self.name, **self.parameters)
        if self.optimizer == AS_STUDENT:
            return self
        from distill.losses.trainable import trainable_names

        if self.name not in (trainable := trainable_names()):
            raise ValueError(
                f"optimizer sets how the loss's own parameters are trained, and loss={self.name} has none; leave it"
                f" out, or choose a loss that has some ({', '.join(trainable)})"
            )
        return self


class SamplerConfig(RegisteredConfig):
    """Where training responses come from; further keys are the sampler's own parameters."""

    registry = SAMPLERS

    @property
    def kind(self) -> Any:
        """The sampler's class, a `distill.samplers.Sampler`."""
        return SAMPLERS.find(self.name)

    @property
    def determining(self) -> Any:
        """All that a result depends on."""
        idle = SAMPLERS.build(self.name, **self.parameters).idle()
        acting = {k: v for k, v in self.chosen.items() if k not in idle}
        return {"name": self.name, **acting} if acting else self.name

    @model_validator(mode="after")
    def _known(self) -> SamplerConfig:
        SAMPLERS.build(self.name, **self.parameters)
        return self


class MethodConfig(Section):
    """A named bundle of loss and sampler."""

    name: str | None


class PresetConfig(Section):
    """Which of the published code's quirks are on; the files of losses and samplers read theirs from here."""

    name: Literal["clean", "reference"]
    akl_crossing: Literal["head", "tail"]
    ab_lines: Literal["exact", "published"]
    alphanet_alphas: list[float]
    alphanet_per: Literal["token", "batch"]
    fkl_entropy: bool
    jsd_teacher_weight: float
    no_repeat_ngram_size: Natural
    loss_mean: Literal["tokens", "micro_batches"]
    student_labels: Literal["shifted", "late"]
    student_eos: Literal["kept", "erased"]
    student_draw: Literal["fresh", "buffer"]
    adaptive_watched: Literal["objective", "ce"]
