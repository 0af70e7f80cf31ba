"""The list of commands."""

from __future__ import annotations

from cyclopts import App

from resnext import __version__
from resnext.cli import (
    benchmark,
    check,
    compare,
    demo,
    describe,
    design,
    embed,
    evaluate,
    explain,
    networks,
    optimize,
    predict,
    train,
    verify,
    weights,
)

app = App(
    name="resnext",
    help="Train image classifiers, show why they work, and run them at the speed of the machine.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.command(train.train)
app.command(evaluate.evaluate)
app.command(predict.predict)
app.command(networks.networks)
app.command(describe.describe)
app.command(verify.verify)
app.command(weights.weights)
app.command(embed.embed)
app.command(explain.explain)
app.command(check.check)
app.command(design.design)
app.command(compare.compare)
app.command(optimize.optimize)
app.command(benchmark.benchmark)
app.command(demo.demo)
