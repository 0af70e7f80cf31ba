"""`resnext train`: from a folder of images to a bundle."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from resnext.cli.output import Output, note, print_json
from resnext.cli.progress import Display
from resnext.errors import UserError


@Parameter(name="*")
@dataclass(frozen=True)
class Place:
    """Where the run lies."""

    out: Path | None = None
    """Directory of the run; runs/NAME, or runs/NAME-2 and so on, where it is not given."""
    resume: Annotated[bool, Parameter(negative="")] = False
    """Go on with the run in --out from its newest checkpoint."""
    auto_resume: Annotated[bool, Parameter(negative="")] = False
    """Go on where --out holds a run, begin where it does not, and leave a finished one as it is: for jobs that are
    started again by themselves."""
    report: bool = True
    """Write a page of the run, report/index.html, when it ends."""


@Parameter(name="*")
@dataclass(frozen=True)
class Instead:
    """What is done instead of one run."""

    folds: int | None = None
    """Cross-validate: train this many times, each with another part for validation."""
    find_learning_rate: Annotated[bool, Parameter(negative="")] = False
    """Try learning rates for some steps, and write the curve, as a picture too, beside --out."""


@Parameter(name="*")
@dataclass(frozen=True)
class Images:
    """What is done to images."""

    image_size: int | None = None
    """Side of the square the network sees, in pixels."""
    flip: float | None = None
    """Probability of mirroring an image in training; 0 where left and right matter."""
    validation: float | None = None
    """Share of the training images that is set aside for validation where there is no val/."""
    max_unreadable: float | None = None
    """Share of images that may be unreadable; they are named and left out."""
    cache_gib: float | None = None
    """Decoded pixels are kept in the user's cache directory where they fit this many GiB; 0 keeps none."""


@Parameter(name="*")
@dataclass(frozen=True)
class What(Images):
    """What is trained on what. Everything left out is chosen for the data and the machine, and said."""

    network: str | None = None
    """A name of `resnext networks`, or one of its family's grammar."""
    weights: str | None = None
    """Weights to begin with: torchvision:NAME, timm:NAME, hub:OWNER/REPO, a bundle, run or file; auto takes what suits
    and can be had, as happens without this flag for photos where no network or recipe is named; none: random ones."""


@Parameter(name="*")
@dataclass(frozen=True)
class How:
    """How long, how fast, from where."""

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    """Peak learning rate."""
    seed: int | None = None
    """Decides the validation cut, the first weights, the order and the augmentation."""
    class_weights: Literal["none", "balanced"] | None = None
    """balanced: an image's loss counts the more, the fewer images its class has."""
    sampling: Literal["shuffled", "balanced"] | None = None
    """balanced: an epoch shows each class equally often, images of rare classes several times."""
    batch_norm: Literal["local", "synchronised"] | None = None
    """With torchrun: batch norm sees the images of one process, or of all."""
    scaling: Literal["none", "linear"] | None = None
    """With torchrun: linear multiplies batch size and learning rate by the number of processes."""


@Parameter(name="*")
@dataclass(frozen=True)
class On:
    """What of the machine is used."""

    device: Literal["auto", "cpu", "cuda", "mps"] | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    workers: int | None = None
    """Threads that read images; -1 is one a core."""
    compile: Literal["auto", "on", "off"] | None = None
    """torch.compile; auto is off."""
    form: Literal["auto", "a", "b", "c"] | None = None
    """auto: equal computations, the fastest by stopwatch; a, b or c: that form of ResNeXt's blocks, as it stands."""
    checkpoint_every: float | None = None
    """Minutes between checkpoints within an epoch."""
    micro_batch: int | None = None
    """Images computed at once, whose gradients are summed to a batch; 0 is as many as memory holds."""


def train(
    data: str,
    /,
    *,
    recipe: str | None = None,
    instead: Instead = Instead(),
    place: Place = Place(),
    what: What = What(),
    how: How = How(),
    on: On = On(),
    output: Output = Output(),
) -> None:
    """Train a classifier on a folder of images, a CSV or a named data set.

    Example: resnext train photos/ --out runs/flowers

    Parameters
    ----------
    data
        CLASS/*.jpg, or train/ [val/] [test/] of those, or a CSV path,label[,split][,group], or cifar10, cifar100
        or fashion-mnist, which are fetched.
    recipe
        A recipe file, or the name of one of this package's recipes; flags win over it.
    """
    fields = {**asdict(what), **asdict(how), **asdict(on)}
    if instead.find_learning_rate:
        _find_learning_rate(data, recipe, place, fields, output)
        return
    with Display() as display:
        result = _train(data, recipe, instead.folds, place, fields, display)
    if result is None:
        return
    if "bundle" in result and place.report:
        _report(Path(result["run"]))
    if output.json:
        print_json(result)
    elif "bundle" in result:
        note(f"The bundle is {result['bundle']}\nNext: resnext predict {shlex.quote(result['bundle'])} PATH…")
    else:
        low, high = result["top1_interval"]
        note(f"Mean top-1 of {instead.folds} folds: {result['top1']:.4f} (95 % interval {low:.4f} to {high:.4f}).")


def _report(run: Path) -> None:
    """Write the page of a run; that it cannot be drawn here loses nothing else."""
    from resnext.inference.reporting import report_run

    try:
        note(f"The report is {report_run(run)[0]}")
    except UserError as why:
        note(f"There is no report: {why}")


def _find_learning_rate(data: str, recipe: str | None, place: Place, fields: dict[str, Any], output: Output) -> None:
    from resnext.training import finder
    from resnext.training.plan import Wish, plan

    if place.resume or place.auto_resume:
        raise UserError("--find-learning-rate begins anew and trains nothing. Leave out --resume and --auto-resume.")
    with Display() as display:
        planned = plan(data, wish=Wish(place.out), recipe=recipe, fields=fields, observer=display)
        for line in planned.notes:
            note(line)
        found = finder.find(planned, display)
    written = [str(path) for path in finder.write(found, finder.place_for(planned.path))]
    if output.json:
        print_json({"learning_rate": found.suggestion, "files": written})
    else:
        print(
            f"The loss falls fastest at a learning rate of {found.suggestion:g}; the curve is in {', '.join(written)}"
        )
        print(f"Next: resnext train {shlex.quote(data)} --learning-rate {found.suggestion:g}")


def _train(
    data: str, recipe: str | None, folds: int | None, place: Place, fields: dict[str, Any], display: Display
) -> dict[str, Any] | None:
    """Train and return what to print; None in a process that another one speaks for."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Said before torch is loaded: it warns of `find_unused_parameters`, which training/distributed.py explains.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from resnext.training.run import train

    if folds is not None:
        from resnext.training.folds import train_folds

        return train_folds(data, folds, out=place.out, recipe=recipe, resume=place.resume, observer=display, **fields)
    run = train(
        data,
        out=place.out,
        recipe=recipe,
        resume=place.resume,
        auto_resume=place.auto_resume,
        observer=display,
        **fields,
    )
    if not run.leads:
        return None
    return {
        "run": str(run.path),
        "bundle": str(run.bundle.path),
        "identity": run.bundle.identity,
        **{key: run.scores[key] for key in ("images", "top1", "top5", "top1_interval", "loss", "epoch")},
    }
