"""`resnext weights`: weights made elsewhere, as a bundle."""

from __future__ import annotations

from pathlib import Path

from resnext.cli.output import Output, note, print_json


def weights(spec: str, /, *, out: Path, network: str | None = None, output: Output = Output()) -> None:
    """Write weights from torchvision, timm, a hub or a file as a bundle, with their classes and preprocessing.

    Example: resnext weights torchvision:resnet50 --out models/resnet50

    Parameters
    ----------
    spec
        torchvision:NAME[.TAG], timm:NAME[.TAG], hub:OWNER/REPO, or a .safetensors or .pth file.
    out
        The bundle to write.
    network
        The network that the weights are for, where nothing beside them says so.
    """
    from resnext.weights import elsewhere

    found = elsewhere.find(spec, network)
    if found.warning:
        note(found.warning)
    bundle = elsewhere.write(found, out)
    contents = bundle.contents
    if output.json:
        print_json(
            {
                "bundle": str(bundle.path),
                "identity": bundle.identity,
                "source": found.about.source,
                "network": contents.network,
                "classes": len(contents.classes),
                "preprocessing": contents.preprocessing.to_dict(),
                "licence": contents.licence,
            }
        )
        return
    size = contents.preprocessing
    print(f"{found.about.source} is {contents.network}, {len(contents.classes)} classes, {size.image_size} pixels.")
    print(contents.licence)
    print(f"The bundle is {bundle.path}\nNext: resnext predict {bundle.path} PATH…")
