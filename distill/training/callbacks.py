"""Trainer callbacks: a progress bar, the time of the steps, and checkpoints within an epoch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from distill.base.console import bar

STEP_TIME = "step_time.json"


class Progress(TrainerCallback):
    """A progress bar with loss, speed and time left, and a line for each validation.

    Args:
        label: the training's name on the bar and in the lines.
        say: prints a line.
    """

    def __init__(self, label: str, say: Callable[[str], None]):
        self.label, self.say = label, say
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar; a resumed run starts at the step of its checkpoint."""
        self.bar = bar(state.max_steps, self.label, "step")
        self.bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the training loss on the bar, or print the result of a validation."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        if logs and "eval_loss" in logs:
            self.say(
                f"  {self.label}, epoch {state.epoch:.3g} of {args.num_train_epochs}:"
                f" validation loss {logs['eval_loss']:.4f}, ROUGE-L {logs['eval_rouge_l']:.2f}"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.bar.close()


class StepTime(TrainerCallback):
    """Measures the time of the training steps.

    It includes making the batches and the optimizer's step. It excludes validation and saving checkpoints. A resumed
    run continues from the numbers in its checkpoint.

    Attributes:
        seconds: the time of all steps so far.
        steps: the number of steps so far.
    """

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self._mark = 0.0

    def restore(self, checkpoint: Path) -> None:
        """Continue from the numbers in a checkpoint. Checkpoints of earlier versions have none."""
        if (checkpoint / STEP_TIME).is_file():
            self.seconds, self.steps = json.loads((checkpoint / STEP_TIME).read_text())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start to measure."""
        self._mark = time.perf_counter()

    on_evaluate = on_train_begin  # the time of a validation is not counted

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the numbers into the checkpoint; the time of saving is not counted."""
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (checkpoint / STEP_TIME).write_text(json.dumps([self.seconds, self.steps]))
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add the time since the last step, validation or checkpoint."""
        now = time.perf_counter()
        self.seconds, self.steps, self._mark = self.seconds + now - self._mark, self.steps + 1, now


class SaveEvery(TrainerCallback):
    """Asks for a checkpoint every `steps` steps, in addition to those that Trainer makes after each epoch."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for a checkpoint if the step is a multiple of `steps`."""
        # The last step of an epoch is left out: Trainer saves it after the validation. With a checkpoint from before
        # the validation, a run that is stopped during the validation would continue without it.
        epoch = state.max_steps // int(args.num_train_epochs)
        if state.global_step % self.steps == 0 and state.global_step % epoch:
            control.should_save = True
        return control
