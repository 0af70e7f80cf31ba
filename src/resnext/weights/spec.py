"""Where weights come from, as one word: `torchvision:NAME[.TAG]`, `timm:NAME[.TAG]`, `hub:OWNER/REPO`, or a path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnext.errors import UserError, did_you_mean

Kind = Literal["torchvision", "timm", "hub", "path"]
KINDS = ("torchvision", "timm", "hub")
EXAMPLES = "torchvision:resnet50, timm:resnext50_32x4d.a1_in1k, hub:OWNER/REPO or a path"


@dataclass(frozen=True)
class Spec:
    """A place of weights. `name` is a network's, a repository's or a path; `tag` which weights of it, or a revision."""

    kind: Kind
    name: str
    tag: str = ""

    def __str__(self) -> str:
        if self.kind == "path":
            return self.name
        return f"{self.kind}:{self.name}" + (f"{'@' if self.kind == 'hub' else '.'}{self.tag}" if self.tag else "")

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Return the place that a text means; raises UserError for one that means none."""
        kind, colon, rest = text.partition(":")
        if not colon or kind not in KINDS:
            # "C:…" and a typing mistake look alike, but what is there is a path.
            if Path(text).exists() or "/" in text or text.endswith((".pth", ".pt", ".bin", ".safetensors")):
                return cls("path", text)
            raise UserError(f"{text!r} names no weights.{did_you_mean(kind, KINDS) if colon else ''}\nGive {EXAMPLES}.")
        if kind == "hub":
            match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", rest)
            if match is None:
                raise UserError(
                    f"{text!r} names no repository of a hub. Give hub:OWNER/REPO or hub:OWNER/REPO@REVISION."
                )
            return cls("hub", match[1], match[2] or "")
        name, _, tag = rest.partition(".")
        if not re.fullmatch(r"\w+", name) or not re.fullmatch(r"[\w.-]*", tag):
            raise UserError(f"{text!r} names no weights. Give {EXAMPLES}.")
        return cls("torchvision" if kind == "torchvision" else "timm", name, tag)
