"""Pictures as they are shown to a teacher that sees."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from opsin.synthesize.request import Shown

if TYPE_CHECKING:
    from pathlib import Path

QUALITY = 90


def shown(path: Path, longest_side: int) -> Shown:
    """A picture as JPEG, its longer side at most so many pixels.

    Raises:
        PictureError: it cannot be opened, or the media policy refuses it.
    """
    from PIL import Image

    from opsin.core.types import Picture
    from opsin.vision.picture import open_picture

    image = open_picture(Picture(path=path))
    scale = longest_side / max(image.size)
    if scale < 1:
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=QUALITY)
    return Shown(encoded.getvalue(), "image/jpeg")
