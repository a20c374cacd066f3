"""The sections that say what is learned: `loss`, `sampler`, `method` and `preset`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, model_validator

from distill.config.section import Natural, NotNegative, Positive, Section

if TYPE_CHECKING:
    from distill.samplers import Sampler


class RegisteredConfig(Section):
    """A registered class by name; further keys are its own parameters."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The class's own parameters."""
        return dict(self.model_extra or {})

    @property
    def switches(self) -> dict[str, Any]:
        """Those of them that choose between ours and published code, at ours."""
        raise NotImplementedError

    @property
    def chosen(self) -> dict[str, Any]:
        """The parameters that tell it apart: a switch counts where it is on."""
        off = self.switches
        return {k: v for k, v in self.parameters.items() if k not in off or v != off[k]}


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

    w_ce: NotNegative
    w_kd: NotNegative
    temperature: Positive
    w_lm: NotNegative = 1.0
    optimizer: LossOptimizerConfig = AS_STUDENT

    @property
    def switches(self) -> dict[str, Any]:
        """See the base class."""
        from distill.losses import switches

        return {} if self.name == "sft" else switches(self.name)

    @property
    def determining(self) -> dict[str, Any]:
        """All that a result depends on."""
        declared = self.model_dump(exclude_defaults=True, include=set(type(self).model_fields))
        return {**declared, **self.chosen}

    @model_validator(mode="after")
    def _known(self) -> LossConfig:
        from distill.losses import build, describe
        from distill.losses.trainable import trainable_names

        if self.w_ce == 0 and self.w_kd == 0:
            raise ValueError("w_ce and w_kd are both 0; at least one must be larger")
        if self.name == "sft":
            if self.w_kd or self.parameters or self.optimizer != AS_STUDENT:
                raise ValueError("sft has no divergence: w_kd must be 0 and nothing but w_ce is set")
            return self
        describe(self.name)
        build(self.name, **self.parameters)
        if self.optimizer != AS_STUDENT and self.name not in (trainable := trainable_names()):
            raise ValueError(
                f"optimizer sets how the loss's own parameters are trained, and loss={self.name} has none; leave it"
                f" out, or choose a loss that has some ({', '.join(trainable)})"
            )
        return self


class SamplerConfig(RegisteredConfig):
    """Where training responses come from; further keys are the sampler's own parameters."""

    @property
    def kind(self) -> type[Sampler]:
        """The sampler's class."""
        from distill.samplers import find

        return find(self.name)

    @property
    def switches(self) -> dict[str, Any]:
        """See the base class."""
        from distill.samplers import switches

        return switches(self.name)

    @property
    def determining(self) -> Any:
        """All that a result depends on."""
        from distill.samplers import build

        idle = build(self.name, **self.parameters).idle()
        acting = {k: v for k, v in self.chosen.items() if k not in idle}
        return {"name": self.name, **acting} if acting else self.name

    @model_validator(mode="after")
    def _known(self) -> SamplerConfig:
        from distill.samplers import build

        build(self.name, **self.parameters)
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
