"""The peer of time_to_accuracy.py: a training loop as timm's training script puts it together, from timm's own parts.

    python benchmarks/timm_training.py --split STUDY/split.csv --out RUN --network N --options JSON --epochs E --rate R

Dataset, loader with its prefetcher and one worker a core, loss, optimiser, schedule by updates, moving average and
cosine with warm-up are timm's; bf16 autocast, channels_last. The network is this package's, so that both sides train
the same layers; so are the split, the batch of 128, label smoothing, weight decay and the crops (padded by 4 pixels,
which suit 32 pixels better than the script's), and the decay of the average. Where the script leaves a choice, the peer
gets what is faster for it: only the averaged weights are validated, not both.

What timm's script offers and this leaves out: sizes of input that change during a run.

A checkpoint is written after each epoch, in safetensors; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import timm.data.transforms
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.data import ImageDataset, create_loader
from timm.data.readers.reader import Reader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchvision import transforms

import resnext
from resnext import machine

MEAN, STD = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)
BATCH, SMOOTHING, WEIGHT_DECAY, MOMENTUM, DECAY, WARM_UP = 128, 0.1, 5e-4, 0.9, 0.998, 0.2
SIDE, PADDING = 32, 4


class Rows(Reader):  # type: ignore[misc]
    """Files and classes of one split, as timm's datasets read them."""

    def __init__(self, rows: list[tuple[Path, int]]) -> None:
        super().__init__()
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.rows[index]
        return path.open("rb"), label

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return str(self.rows[index][0])


def read_split(file: Path) -> dict[str, list[tuple[Path, int]]]:
    """Return the files and classes of each split of a CSV `path,label,split`; paths are relative to its folder."""
    with file.open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    classes = {name: number for number, name in enumerate(sorted({row["label"] for row in rows}))}
    splits: dict[str, list[tuple[Path, int]]] = {}
    for row in rows:
        splits.setdefault(row["split"], []).append((file.parent / row["path"], classes[row["label"]]))
    return splits


def read_test(folder: Path) -> list[tuple[Path, int]]:
    """Return the files and classes below `folder`, CLASS/FILE."""
    classes = sorted(place.name for place in folder.iterdir() if place.is_dir())
    return [(file, number) for number, name in enumerate(classes) for file in sorted((folder / name).iterdir())]


def loader_of(rows: list[tuple[Path, int]], *, training: bool) -> Any:
    """Return timm's loader over these files, with its prefetcher."""
    loader = create_loader(
        ImageDataset("", reader=Rows(rows)),
        input_size=(3, SIDE, SIDE),
        batch_size=BATCH if len(rows) >= BATCH else len(rows),
        is_training=training,
        no_aug=training,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=machine.cores(),
        crop_pct=1.0,
        device=torch.device("cpu"),
    )
    if training:
        loader.dataset.transform = transforms.Compose(
            [
                transforms.RandomCrop(SIDE, padding=PADDING),
                transforms.RandomHorizontalFlip(),
                timm.data.transforms.ToNumpy(),
            ]
        )
    return loader


class Training:
    """What the loop holds and changes."""

    def __init__(self, options: argparse.Namespace, updates_per_epoch: int) -> None:
        torch.manual_seed(options.seed)
        network = resnext.create(options.network, num_classes=options.classes, **json.loads(options.options))
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer = create_optimizer_v2(
            self.network, opt="sgd", lr=options.rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        self.average = ModelEmaV3(self.network, decay=DECAY, use_warmup=True)
        self.schedule, _ = create_scheduler_v2(
            self.optimizer,
            sched="cosine",
            num_epochs=options.epochs,
            warmup_epochs=round(WARM_UP * options.epochs),
            warmup_lr=options.rate / 25,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )
        self.loss = LabelSmoothingCrossEntropy(SMOOTHING)
        self.updates = 0

    def epoch(self, loader: Any) -> None:
        """Train on every batch of the loader."""
        self.network.train()
        for images, labels in loader:
            with torch.autocast("cpu", torch.bfloat16):
                loss = self.loss(self.network(images.to(memory_format=torch.channels_last)), labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.updates += 1
            self.average.update(self.network, step=self.updates)
            self.schedule.step_update(self.updates)

    def tensors(self) -> dict[str, Tensor]:
        """Return what the next update depends on, by name."""
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average/{name}": value for name, value in self.average.module.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{key}": value for key, value in state.items() if value is not None}
        return {name: value.contiguous() for name, value in tensors.items()}

    def restore(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Go on from what `tensors` gave."""
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = value
        self.network.load_state_dict(parts["network"])
        self.average.module.load_state_dict(parts["average"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            number, _, key = name.partition("/")
            state.setdefault(int(number), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.updates = updates
        self.schedule.step_update(updates)


def accuracy(network: nn.Module, loader: Any) -> float:
    """Return the share of the loader's images that the network ranks right first."""
    network.eval()
    right = count = 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for images, labels in loader:
            logits = network(images.to(memory_format=torch.channels_last))
            right += int((logits.argmax(1) == labels).sum())
            count += len(labels)
    return right / count


def write(tensors: dict[str, Tensor], file: Path, **about: str) -> None:
    """Write tensors such that a kill leaves the old file or the new one."""
    beside = file.with_name(file.name + ".new")
    save_file(tensors, beside, metadata=about)
    beside.replace(file)


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors that `write` wrote, and what was said about them."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata())  # noqa: SIM118


def train(options: argparse.Namespace) -> None:
    """Train to the last epoch, from the newest checkpoint or the beginning; tell the journal, as `resnext train`."""
    splits = read_split(options.split)
    options.classes = 1 + max(label for _, label in splits["train"])
    options.out.mkdir(parents=True, exist_ok=True)
    training_loader, validation_loader = (
        loader_of(splits["train"], training=True),
        loader_of(splits["val"], training=False),
    )
    training = Training(options, len(training_loader))
    first, best, last = 0, 0.0, options.out / "last.safetensors"
    if last.exists():
        tensors, about = read(last)
        training.restore(tensors, int(about["updates"]))
        first, best = int(about["epoch"]) + 1, float(about["best"])
    with (options.out / "journal.jsonl").open("a", encoding="utf-8") as journal:

        def tell(event: str, **fields: Any) -> None:
            journal.write("\n" + json.dumps({"event": event, **fields, "time": round(time.time(), 3)}) + "\n")
            journal.flush()

        tell("resume" if first else "start", at_step=training.updates)
        for epoch in range(first, options.epochs):
            torch.manual_seed(options.seed * 1_000_003 + epoch)
            training.epoch(training_loader)
            top1 = accuracy(training.average.module, validation_loader)
            if top1 > best:
                best = top1
                weights = {name: value.contiguous() for name, value in training.average.module.state_dict().items()}
                write(weights, options.out / "best.safetensors", epoch=str(epoch), top1=str(top1))
            tell("epoch", epoch=epoch, top1=top1)
            write(training.tensors(), last, epoch=str(epoch), updates=str(training.updates), best=str(best))
            tell("checkpoint", at_step=training.updates)
        tell("end")


def test(options: argparse.Namespace) -> None:
    """Print the accuracy of the best weights on the test images, as JSON."""
    rows = read_test(options.test)
    network = resnext.create(options.network, num_classes=1 + rows[-1][1], **json.loads(options.options))
    weights, about = read(options.out / "best.safetensors")
    network.load_state_dict(weights)
    top1 = accuracy(network.to(memory_format=torch.channels_last), loader_of(rows, training=False))
    print(json.dumps({"top1": top1, "images": len(rows), "epoch": int(about["epoch"])}))


def main() -> None:
    """Train, or test what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", type=Path, help="CSV path,label,split")
    parser.add_argument("--test", type=Path, help="test the best weights on CLASS/FILE below this folder, and end")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", required=True)
    parser.add_argument("--options", default="{}", help="the network's options, as JSON")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.test is not None:
        test(options)
    else:
        train(options)


if __name__ == "__main__":
    main()
