"""Wide or deep: what does a step of a wide network take against one of a deep network of about as many parameters?

    python benchmarks/width_or_depth.py [--networks wrn_28_2 cifar_preact_resnet110] [--rounds 3]

`wrn_28_2` has 1,467,610 parameters in 28 layers, `cifar_preact_resnet110` 1,727,962 in 110 (arXiv:1605.07146 says that
thousands of thin layers are slow to compute in turn). A training step as `resnext train` computes it and eager
inference, by turns in one process, milliseconds an image; each round measures anew.
"""

from __future__ import annotations

import argparse
import statistics

from environment import print_environment

from resnext import complexity
from resnext.design.measuring import Subject, measure


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["wrn_28_2", "cifar_preact_resnet110"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print_environment()
    told = [complexity.describe(name) for name in options.networks]
    subjects = [Subject(each["name"], {}, each["image_size"]) for each in told]
    rounds = [measure(subjects, lambda *_: None) for _ in range(options.rounds)]
    print("\n| network | layers | parameters | multiply-adds | training, ms an image | inference, ms an image |")
    print("|---|---:|---:|---:|---:|---:|")
    for place, each in enumerate(told):
        step, inference = (
            1e3 * statistics.median(getattr(times[place], what) for times in rounds) for what in ("step", "inference")
        )
        counts = f"{each['depth']} | {each['parameters']:,} | {each['macs']:,}"
        print(f"| {each['name']} | {counts} | {step:.3f} | {inference:.3f} |")


if __name__ == "__main__":
    main()
