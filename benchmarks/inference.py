"""How fast is a ResNeXt on this processor, ours beside PyTorch, ONNX Runtime and OpenVINO?

    python benchmarks/inference.py [--networks resnext50_32x4d,resnext101_32x4d] [--precision fp32,bf16,int8]
                                   [--against eager,compile,onnxruntime,openvino] [--batch 1,4,16] [--rounds 7]
                                   [--seconds 1] [--minutes 2] [--out runs/inference]

The race of `resnext benchmark`, for each network: every contender in a process of its own, prepared alone, at its best
batch size and streams, and then all in turns; ratios are of medians. The networks have fresh weights, which makes no
difference to speed; ours is tuned on the spot, as `resnext optimize` does. Prints a table for each network in Markdown
with what it was measured on, and writes JSON and a chart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from environment import print_environment

from resnext.benchmarking import chart, race, report

TARGETS = {
    ("resnext50_32x4d", "bf16"): (1.10, 15),
    ("resnext101_32x4d", "bf16"): (1.08, None),
    ("resnext50_32x4d", "int8"): (1.25, 25),
    ("resnext101_32x4d", "int8"): (1.15, None),
}
"""What is wanted, times plain OpenVINO and times eager fp32 NCHW."""


def print_targets(done: race.Race) -> None:
    """Print what was wanted, and what was reached."""
    against = next(
        (one for one in done.figures if one.contender.peer == "eager" and one.contender.layout == "NCHW"), None
    )
    for (network, precision), (over_openvino, over_eager) in TARGETS.items():
        mine = report.ours(done, precision)
        if network != done.network or mine is None or mine.failure:
            continue
        peers = [
            one for one in done.figures if (one.contender.peer, one.contender.precision) == ("openvino", precision)
        ]
        pairs = [
            *((peer, over_openvino) for peer in peers),
            *([(against, over_eager)] if against and over_eager else []),
        ]
        for peer, wanted in pairs:
            reached = report.ratio(mine, peer)
            if reached is not None:
                print(f"{precision}: {reached:.2f} × {peer.contender.name} (wanted: {wanted:.2f} or more)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnext50_32x4d,resnext101_32x4d")
    parser.add_argument("--against", default="eager,compile,onnxruntime,openvino")
    parser.add_argument(
        "--precision", help="some of fp32, bf16, int8; all that the processor has where it is not given"
    )
    parser.add_argument("--batch", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--images", type=int, default=300, help="that calibrate int8, for everybody")
    parser.add_argument("--out", type=Path, default=Path("runs/inference"))
    options = parser.parse_args()
    for network in options.networks.split(","):
        plan = race.Plan(
            network,
            against=tuple(options.against.split(",")),
            precisions=tuple(options.precision.split(",")) if options.precision else None,
            batches=tuple(map(int, options.batch.split(","))),
            rounds=options.rounds,
            seconds=options.seconds,
            minutes=options.minutes,
            images=options.images,
        )
        done = race.run(plan, lambda what, count, total: print(f"{what} {count}/{total}", file=sys.stderr, flush=True))
        report.write(done, options.out / network, ["python", *sys.argv])
        chart.draw(done, options.out / network / "benchmark.png")
        print_environment()
        versions = report.software()
        told = ", ".join(f"{name} {versions[name]}" for name in report.PACKAGES if name in versions)
        print(
            f"{network}, {done.image_size} px, seed {plan.seed}, {plan.rounds} rounds of {plan.seconds:g} s; {told}\n"
        )
        print(report.markdown(report.table(done)), "\n")
        for line in (*done.notes, report.INPUTS):
            print(line)
        print()
        print_targets(done)
        print(flush=True)


if __name__ == "__main__":
    main()
