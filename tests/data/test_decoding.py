"""One image file to pixels: every kind becomes RGB, and a broken one is named."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from hydraprune.data.decoding import decode
from hydraprune.data.views import CentreView, RandomView, Try
from hydraprune.errors import DataError

WHOLE = RandomView((Try(1.0, 1.0, 0, 0),), (1.0, 1.0), mirrored=False)


def palette() -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image


def test_pixels_come_as_red_green_blue_rows(tmp_path, write_image):
    pixels = decode(write_image(tmp_path / "a.png", 8, 8, blue=77), WHOLE, 8)
    assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
    assert pixels[3, :, 0].tolist() == [0, 36, 73, 109, 146, 182, 219, 255]
    assert pixels[:, 3, 1].tolist() == [0, 36, 73, 109, 146, 182, 219, 255]
    assert (pixels[:, :, 2] == 77).all()


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("grey.png", Image.new("L", (8, 8), 90), {}, (90, 90, 90)),
        ("bits.png", Image.new("1", (8, 8), 1), {}, (255, 255, 255)),
        ("grey16.png", Image.fromarray(np.full((8, 8), 90 * 256, np.uint16)), {}, (90, 90, 90)),
        ("grey-alpha.png", Image.new("LA", (8, 8), (90, 10)), {}, (90, 90, 90)),
        ("alpha.png", Image.new("RGBA", (8, 8), (200, 100, 50, 10)), {}, (200, 100, 50)),
        ("palette.png", palette(), {}, (200, 100, 50)),
        ("glass.png", palette(), {"transparency": bytes([0, 9])}, (200, 100, 50)),
        ("grey.jpg", Image.new("L", (8, 8), 90), {}, (90, 90, 90)),
        ("cmyk.jpg", Image.new("CMYK", (8, 8), (55, 155, 205, 0)), {"quality": 100}, (200, 100, 50)),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, name, image, options, expected):
    image.save(tmp_path / name, **options)
    for view in (WHOLE, CentreView(4)):
        pixels = decode(tmp_path / name, view, 4).astype(int)
        assert abs(pixels - expected).max() <= (0 if name.endswith("png") else 3)


def test_the_content_decides_not_the_name(tmp_path, write_image):
    """One of ImageNet's .JPEG files is a PNG."""
    path = write_image(tmp_path / "a.png", 8, 8)
    assert decode(path.rename(tmp_path / "a.JPEG"), WHOLE, 8)[0, 7, 0] == 255


def test_the_centre_view_is_that_of_resizing_and_cutting_in_two_steps(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 131, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    resized = Image.fromarray(noise).resize((73 * 131 // 90, 73), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 64) / 2), round((73 - 64) / 2)
    expected = np.asarray(resized.crop((left, top, left + 64, top + 64))).astype(int)
    assert abs(decode(tmp_path / "noise.png", CentreView(64), 64) - expected).max() <= 1


def test_a_mirrored_view_is_the_mirror_image(tmp_path, write_image):
    path = write_image(tmp_path / "a.png")
    tries, ratios = (Try(0.3, 1.2, 0.2, 0.7),), (0.5, 2.0)
    plain, mirrored = (decode(path, RandomView(tries, ratios, turned), 16) for turned in (False, True))
    assert (mirrored == plain[:, ::-1]).all()


def test_a_large_jpeg_decoded_small_shows_the_same_part(tmp_path, write_image, monkeypatch):
    path = write_image(tmp_path / "large.jpg", 1203, 801)
    view = RandomView((Try(0.4, 1.1, 0.9, 0.3),), (0.5, 2.0), mirrored=False)
    short_cut = decode(path, view, 32).astype(int)
    monkeypatch.setattr(RandomView, "exact", True)
    assert abs(short_cut - decode(path, view, 32)).max() <= 2


def test_evaluation_decodes_in_full(tmp_path, write_image, monkeypatch):
    path = write_image(tmp_path / "large.jpg", 1200, 800)

    def refuse(*_: object) -> None:
        raise AssertionError("decoded small")

    monkeypatch.setattr(JpegImageFile, "draft", refuse)
    decode(path, CentreView(32), 32)
    with pytest.raises(DataError, match="decoded small"):
        decode(path, WHOLE, 32)


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (encoded("JPEG")[:-1500], "truncated"),
        (encoded("PNG")[:-1500], "truncated"),
        (encoded("PNG")[:40], "it is no JPEG or PNG image"),
        (encoded("JPEG")[:100], "Truncated File Read"),
        (b"", "it is no JPEG or PNG image"),
        (b"<html>404</html>", "it is no JPEG or PNG image"),
        (encoded("GIF"), "it is no JPEG or PNG image"),
    ],
    ids=["cut jpeg", "cut png", "png head", "jpeg head", "empty", "page", "gif"],
)
def test_a_broken_file_is_named_in_one_line(tmp_path, content, says):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    for view in (WHOLE, CentreView(8)):
        with pytest.raises(DataError, match=says) as caught:
            decode(path, view, 8)
        assert f"'{path}'" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png': the file is gone"):
        decode(tmp_path / "gone.png", WHOLE, 8)
