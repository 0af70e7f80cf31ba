"""`resnext compare`: train several networks by one recipe, with several seeds, and say what the data support."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from resnext.cli.lists import names, numbers
from resnext.cli.output import Output, note, print_json, print_table
from resnext.cli.progress import Display
from resnext.cli.train import How, Images, On
from resnext.errors import UserError

if TYPE_CHECKING:
    from resnext.design.study import Candidate, Study


@Parameter(name="*")
@dataclass(frozen=True)
class Who:
    """Who is compared: networks by name, or those that cost as much as another one, as `resnext design` has it."""

    networks: str | None = None
    """Names, as resnet18,resnext50_32x4d; the first is the reference."""
    like: str | None = None
    """The reference, beside networks that cost as much."""
    cardinality: str | None = None
    width: str | None = None
    depth: str | None = None
    match: Literal["block", "macs", "parameters"] | None = None
    """What is to be equal: a block of the first stage (the default), or the whole network."""
    factor: float = 1.0
    """Times what the reference costs."""


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """What is asked of them."""

    seeds: int = 3
    """Trials of each candidate; from six on a test can say something."""
    measure: Literal["test", "validation"] | None = None
    """Images to compare on; the test split, looked at once a trial, where DATA has one."""
    training_error: Annotated[bool, Parameter(negative="")] = False
    """Measure the error on training images, too, as they are."""
    learning_rates: str | None = None
    """Rates to try for each candidate, as 0.05,0.1,0.2: the best on validation, with a seed of its own, is taken."""
    halving: Annotated[bool, Parameter(negative="")] = False
    """Leave the worse half out after fewer epochs: saves time, and asks another question, which is said."""


@Parameter(name="*")
@dataclass(frozen=True)
class Alike(Images):
    """What is the same for all."""

    recipe: str | None = None
    """A recipe file, or the name of one of this package's recipes; flags win over it. What is left open is chosen as
    for the reference, and then the same for all."""


@Parameter(name="*")
@dataclass(frozen=True)
class Work:
    """Where and how the study runs."""

    out: Path | None = None
    """Directory of the study; runs/compare-NAME where it is not given."""
    resume: Annotated[bool, Parameter(negative="")] = False
    """Go on with the study in --out, by its plan."""
    plan_only: Annotated[bool, Parameter(negative="")] = False
    """Write the plan, which may be edited, and train nothing yet."""
    ray: str | None = None
    """local, or the address of a Ray cluster, whose machines see the data and --out where they are here."""
    cores: int | None = None
    """Cores of one trial on Ray; all of the smallest machine where it is not given."""


def compare(
    data: str | None = None,
    /,
    *,
    who: Who = Who(),
    asked: Asked = Asked(),
    alike: Alike = Alike(),
    how: How = How(),
    on: On = On(),
    work: Work = Work(),
    output: Output = Output(),
) -> None:
    """Train networks by one recipe with several seeds each, and report what the data support.

    Example: resnext compare photos/ --like resnet50 --cardinality 1,4,32 --seeds 6 --out runs/study

    Parameters
    ----------
    data
        As for train. Left out with --resume.
    """
    place = work.out or Path("runs") / f"compare-{Path(data or 'data').resolve().name}"
    with Display() as display:
        if work.resume:
            study = _resumed(place, any([data, who != Who(), asked != Asked(), alike != Alike()]))
        else:
            study = _begun(data, place, who, asked, {**asdict(alike), **asdict(how), **asdict(on)}, display)
        if work.plan_only:
            note(f"The plan is {place / 'study.toml'}\nNext: resnext compare --resume --out {shlex.quote(str(place))}")
            return
        _conduct(study, work, display)
    _show(study, output)


def _resumed(place: Path, is_more_said: bool) -> Study:
    from resnext.design.study import Study

    if is_more_said:
        raise UserError(f"--resume follows the plan in {place}. Leave out what it says: DATA, networks, seeds, recipe.")
    return Study.open(place)


def _begun(
    data: str | None,
    place: Path,
    who: Who,
    asked: Asked,
    fields: dict[str, Any],
    display: Display,
) -> Study:
    from resnext.design import beginning

    if data is None:
        raise UserError("There is no DATA to train on. Give a folder, or --resume with --out.")
    question = beginning.Question(
        seeds=asked.seeds,
        measure=asked.measure,
        training_error=asked.training_error,
        rates=_rates(asked.learning_rates),
        halving=asked.halving,
    )
    candidates, recipe = _candidates(who), fields.pop("recipe")
    return beginning.begin(data, place, candidates, question, recipe=recipe, fields=fields, observer=display)


def _candidates(who: Who) -> dict[str, Candidate]:
    from resnext.design import beginning, budget

    if (who.networks is None) == (who.like is None):
        raise UserError("Who is compared? Give --networks A,B, or --like NETWORK with what to change. Not both.")
    if who.like is None:
        return beginning.named(names(who.networks or ""))
    fixed = budget.Fixed(
        cardinality=numbers("cardinality", who.cardinality),
        width=numbers("width", who.width),
        depth=numbers("depth", who.depth),
    )
    answer = budget.design(who.like, fixed=fixed, wish=budget.Wish(factor=who.factor, match=who.match))
    return beginning.designed(answer)


def _rates(given: str | None) -> tuple[float, ...]:
    if given is None:
        return ()
    try:
        return tuple(float(word) for word in names(given))
    except ValueError:
        raise UserError(f"--learning-rates {given!r} is no list of numbers. Write it like 0.05,0.1.") from None


def _conduct(study: Study, work: Work, display: Display) -> None:
    from resnext.design import cluster, conduct

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "trial":
            display.say(f"Trial {event['number']} of {event['of']}: {event['trial']}")
        elif event["event"] == "finished":
            display.say(f"{event['trial']}: {study.plan.measure} top-1 {event['outcome'][study.plan.measure]:.4f}")
        else:
            display(event)

    if work.ray is None:
        conduct.conduct(study, tell)
    else:
        cluster.conduct(study, tell, work.ray, work.cores)


def _show(study: Study, output: Output) -> None:
    """Write the report, and print the table and what it supports."""
    from resnext.design import outcomes, report, words

    files = report.write(study)
    found = outcomes.results(study)
    summed = outcomes.summaries(study, found)
    if output.json:
        print_json(
            {
                "study": str(study.place),
                "files": [str(file) for file in files],
                "verdicts": words.verdicts(study.plan, summed),
                "candidates": [_told(one) for one in summed],
            }
        )
        return
    print_table(words.COLUMNS, words.rows(summed), right=range(1, len(words.COLUMNS)))
    for line in words.verdicts(study.plan, summed):
        print(line)
    note(f"The report is {files[0]}")


def _told(one: Any) -> dict[str, Any]:
    return {
        "candidate": one.candidate,
        "network": one.network,
        "parameters": one.parameters,
        "macs": one.macs,
        "top1": asdict(one.top1),
        "difference": None if one.difference is None else asdict(one.difference),
        "step_ms": 1e3 * one.step_seconds,
        "training_loss": one.training_loss.mean,
    }
