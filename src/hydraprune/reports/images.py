"""Small arrays as PNG data URIs."""

import base64
import io
import math

import numpy as np
import numpy.typing as npt
from matplotlib.image import imsave


def png_uri(image: npt.NDArray[np.float32]) -> str:
    """Return an image (c, h, w), c 1 or 3, values in [0, 1], as a PNG data URI, one pixel for one pixel."""
    pixels = np.rint(np.moveaxis(image, 0, -1) * 255).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    rgb = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
    imsave(buffer, rgb, format="png", metadata={"Software": "hydraprune"})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def magnification(difference: npt.NDArray[np.float32]) -> int:
    """Return the whole factor by which a difference can be magnified and still fit around mid-grey; at least 1."""
    largest = float(np.abs(difference).max())
    # The small addition undoes rounding: 0.5 / float32(0.1) is a little under 5.
    return max(1, math.floor(0.5 / largest + 1e-4)) if largest > 0 else 1
