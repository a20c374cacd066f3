"""What is done beside training: a progress bar, the steps' time, and checkpoints within an epoch."""

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
    """A progress bar with loss, speed and time left, and a line for each validation."""

    def __init__(self, label: str, say: Callable[[str], None]):
        self.label, self.say = label, say
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar, at the step that a resumed run goes on from."""
        self.bar = bar(state.max_steps, self.label, "step")
        self.bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the training loss, or tell a validation's result."""
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
    """Seconds that the steps take, their batches and the optimizer's part included, validation and saving not; a run
    that goes on counts on from its checkpoint."""

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self._mark = 0.0

    def restore(self, checkpoint: Path) -> None:
        """Go on from what a checkpoint tells; one of an earlier version tells nothing."""
        if (checkpoint / STEP_TIME).is_file():
            self.seconds, self.steps = json.loads((checkpoint / STEP_TIME).read_text())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Time runs from here."""
        self._mark = time.perf_counter()

    on_evaluate = on_train_begin  # and again from behind each validation and checkpoint

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the count in the checkpoint."""
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (checkpoint / STEP_TIME).write_text(json.dumps([self.seconds, self.steps]))
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step's time ends here, and the next one's begins."""
        now = time.perf_counter()
        self.seconds, self.steps, self._mark = self.seconds + now - self._mark, self.steps + 1, now


class SaveEvery(TrainerCallback):
    """A checkpoint every so many steps, beside those that Trainer makes each epoch."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for a checkpoint when its step has come."""
        # The step that ends an epoch is saved by Trainer after its validation; saved before it, a run that is stopped
        # during the validation would go on without it.
        epoch = state.max_steps // int(args.num_train_epochs)
        if state.global_step % self.steps == 0 and state.global_step % epoch:
            control.should_save = True
        return control
