"""Who takes part: ours, and the peers that people run a network with, each in its usual forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from resnext.errors import UserError, did_you_mean

PRECISIONS = ("fp32", "bf16", "int8")
NCHW, LAST = "NCHW", "channels_last"


@dataclass(frozen=True)
class Contender:
    """One way to run a network: by whom, in which precision and, for torch, in which layout of the images."""

    peer: str
    precision: str
    layout: str = ""

    @property
    def key(self) -> str:
        """What its files are called, such as "eager-fp32-NCHW"."""
        return "-".join(filter(None, (self.peer, self.precision, self.layout)))

    @property
    def name(self) -> str:
        """What people read, such as "torch eager fp32 NCHW"."""
        return " ".join(filter(None, (NAMES[self.peer], self.precision, self.layout)))

    def to_dict(self) -> dict[str, str]:
        """Return what JSON holds; `Contender(**told)` is the way back."""
        return asdict(self)


OURS = "ours"
NAMES = {
    OURS: "resnext",
    "eager": "torch eager",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
BASE = Contender("eager", "fp32", NCHW)
"""What somebody gets who builds a network in timm or torchvision and calls it."""

PEERS = (
    BASE,
    Contender("eager", "fp32", LAST),
    Contender("compile", "fp32", LAST),
    Contender("eager", "bf16", LAST),
    Contender("compile", "bf16", LAST),
    Contender("onnxruntime", "fp32"),
    Contender("onnxruntime", "int8"),
    Contender("openvino", "fp32"),
    Contender("openvino", "bf16"),
    Contender("openvino", "int8"),
)
AGAINST = ("eager", "compile", "onnxruntime", "openvino")


def lineup(against: Sequence[str], precisions: Sequence[str]) -> list[Contender]:
    """Return ours and its peers of these precisions, ours first, and `BASE` wherever eager torch takes part.

    Raises UserError for a peer or a precision that there is not.
    """
    check("--against", against, AGAINST)
    check("--precision", precisions, PRECISIONS)
    ours = [Contender(OURS, precision) for precision in PRECISIONS if precision in precisions]
    peers = [one for one in PEERS if one.peer in against and (one.precision in precisions or one == BASE)]
    return ours + peers


def check(flag: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Raise UserError unless every name is known and there is one."""
    for name in given:
        if name not in known:
            raise UserError(f"{flag}: there is no {name!r}.{did_you_mean(name, known)} Choose from {', '.join(known)}.")
    if not given:
        raise UserError(f"{flag} names nothing. Choose from {', '.join(known)}.")
