"""A run as it is seen: a progress bar with ETA on a terminal, one line an epoch elsewhere; always on stderr."""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from resnext.cli.output import error_console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


WORTH_TELLING = 20  # seconds
SMOOTHING = 0.95  # of the loss that is shown beside the bar


class Display:
    """Observe the events of a run, of decoding and of evaluation."""

    def __init__(self) -> None:
        self.console = error_console()
        self.progress: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.steps_left: int | None = None
        self.loss: float | None = None
        self.speed = 0.0
        self.validated = ""

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self.console,
                transient=True,
            )
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event; kinds that have nothing to show are passed over."""
        show = getattr(self, f"_show_{event['event'].replace('-', '_')}", None)
        if show is not None:
            show(event)

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        self.console.print(text, markup=False)

    def bar(self, name: str, done: int, total: int) -> None:
        """Move the bar of this name, which is made on its first move and goes away when it is full."""
        if self.progress is None:
            return
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total)
        self.progress.update(self.tasks[name], completed=done, total=total)
        if done >= total:
            self.progress.remove_task(self.tasks.pop(name))

    def _show_start(self, event: dict[str, Any]) -> None:
        self.steps_left = None
        if self.progress is not None and "training" in self.tasks:
            self.progress.remove_task(self.tasks.pop("training"))
        for line in event["notes"]:
            self.say(line)
        self.say(f"The run is {event['run']}.")
        self.say(
            f"Training {event['network']} on {event['train_images']} images of {event['classes']} classes, "
            f"validating on {event['validation_images']} ({event['device']})."
        )

    _show_resume = _show_start

    def _show_progress(self, event: dict[str, Any]) -> None:
        self.bar(event["of"], event["done"], event["total"])

    def _show_estimate(self, event: dict[str, Any]) -> None:
        self.steps_left = event["steps"]
        if event["seconds"] >= WORTH_TELLING:
            self.say(f"Training will take about {_duration(event['seconds'])}, validation not counted.")

    def _show_step(self, event: dict[str, Any]) -> None:
        if self.steps_left is None:
            return
        if "training" not in self.tasks:
            self.first_step = event["step"]
        self.bar("training", event["step"] - self.first_step + 1, self.steps_left)
        self._show_live(event)

    def _show_live(self, event: dict[str, Any]) -> None:
        """Put loss, rate, speed and the last validation beside the bar."""
        seconds = event["data_seconds"] + event["compute_seconds"] + event["update_seconds"]
        speed = event["images"] / max(seconds, 1e-9)
        if self.loss is None:
            self.loss, self.speed = event["loss"], speed
        self.loss = SMOOTHING * self.loss + (1 - SMOOTHING) * event["loss"]
        self.speed = SMOOTHING * self.speed + (1 - SMOOTHING) * speed
        if self.progress is not None and "training" in self.tasks:
            rate = f"rate {event['learning_rate']:.2g}"
            live = f"epoch {event['epoch'] + 1}  loss {self.loss:.3f}  {rate}  {self.speed:.0f} img/s{self.validated}"
            self.progress.update(self.tasks["training"], description=live)

    def _show_note(self, event: dict[str, Any]) -> None:
        self.say(event["text"])

    _show_skipped = _show_return = _show_micro_batch = _show_note

    def _show_stopping(self, event: dict[str, Any]) -> None:
        self.say("Stopping after this step and saving; once more stops at once.")

    def _show_unreadable(self, event: dict[str, Any]) -> None:
        self.say(f"Left out: {event['path']}: {event['error']}.")

    def _show_epoch(self, event: dict[str, Any]) -> None:
        self.validated = f"  top-1 {event['top1']:.3f}"
        self.say(
            f"Epoch {event['epoch'] + 1:3d}  loss {event['train_loss']:.3f}  validation {_loss(event['loss'])}, "
            f"top-1 {event['top1']:.4f}{' (best)' if event['best'] else '':7s}  {event['images_a_second']:.0f} img/s"
        )

    def _show_end(self, event: dict[str, Any]) -> None:
        low, high = event["top1_interval"]
        self.say(
            f"Done in {_duration(event['seconds'])}. Best epoch in fp32 on {event['images']} validation images: "
            f"top-1 {event['top1']:.4f} (95 % interval {low:.4f} to {high:.4f})."
        )


def _loss(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.3f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
