"""Oracles: the arrays that were written, tifffile's own reader, Pillow's JPEG decoder."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cellvision.data.images import (
    image_stem,
    list_images,
    open_image,
    read_image,
    read_info,
    read_label_image,
    tiff,
)
from cellvision.errors import DataError, ShapeError

RNG = np.random.default_rng(0)
FULL_RANGE = {
    "uint8": RNG.integers(0, 256, (3, 37, 53), dtype=np.uint8),
    "uint16": RNG.integers(0, 65536, (3, 37, 53), dtype=np.uint16),
    "float32": RNG.normal(0, 1e5, (3, 37, 53)).astype(np.float32),
}
CYX = {"photometric": "minisblack", "metadata": {"axes": "CYX"}}


def fails(path, *words, read=read_image):
    with pytest.raises(DataError) as caught:
        read(path)
    text = str(caught.value)
    for word in (str(path), "; need ", "; try: ", *words):
        assert word in text, text


@pytest.fixture
def path(tmp_path):
    return tmp_path / "field.tif"


@pytest.mark.parametrize("dtype", FULL_RANGE)
@pytest.mark.parametrize(
    "layout",
    [
        {"metadata": {"axes": "CYX"}},
        {"ome": True, "metadata": {"axes": "CYX"}},
        {"imagej": True, "metadata": {"axes": "CYX"}},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "tile": (16, 32), "compression": "zlib"},
        {"metadata": {"axes": "CYX"}, "byteorder": ">"},
        {"metadata": {"axes": "CYX"}, "tile": (16, 16), "compression": "lzw", "predictor": True},
        {"metadata": {"axes": "CYX"}, "rowsperstrip": 5, "compression": "zlib", "predictor": True},
        {"metadata": {"axes": "CYX"}, "rowsperstrip": 7},
        {"metadata": {"axes": "CYX"}, "compression": "zstd", "bigtiff": True, "byteorder": ">"},
        {"metadata": {"axes": "CYX"}, "compression": "packbits", "rowsperstrip": 1},
        {"metadata": None},
    ],
    ids=str,
)
def test_tiff_comes_back_as_written_whole_and_by_windows(path, dtype, layout):
    written = FULL_RANGE[dtype]
    tifffile.imwrite(path, written, photometric="minisblack", **layout)
    image, info = read_image(path)
    np.testing.assert_array_equal(image, written)
    assert (image.dtype.name, info.dtype, info.shape) == (dtype, dtype, written.shape)
    with open_image(path) as reader:
        for top, bottom, left, right in [(0, 1, 0, 1), (4, 33, 15, 34), (36, 37, 0, 53), (0, 37, 52, 53)]:
            window = reader.read(top, bottom, left, right)
            np.testing.assert_array_equal(window, written[:, top:bottom, left:right])
            assert window.dtype.name == dtype


@pytest.mark.parametrize("samples", [2, 3, 5, 17])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "compression": "zlib"}], ids=str)
def test_interleaved_channels(path, samples, options):
    written = RNG.integers(0, 65536, (21, 40, samples), dtype=np.uint16)
    tifffile.imwrite(path, written, photometric="minisblack", planarconfig="contig", **options)
    np.testing.assert_array_equal(read_image(path)[0], np.moveaxis(written, -1, 0))
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(3, 19, 5, 31), np.moveaxis(written, -1, 0)[:, 3:19, 5:31])


def test_jpeg_in_tiff_agrees_with_tifffile(path):
    smooth = np.linspace(0, 255, 64 * 48 * 3).reshape(64, 48, 3).astype(np.uint8)
    tifffile.imwrite(path, smooth, photometric="rgb", tile=(32, 32), compression="jpeg", subsampling=(2, 2))
    expected = np.moveaxis(tifffile.imread(path), -1, 0)
    np.testing.assert_array_equal(read_image(path)[0], expected)
    assert np.abs(expected.astype(int) - np.moveaxis(smooth, -1, 0)).max() < 16
    fails(path, "JPEG, which changes the labels", read=read_label_image)


@pytest.mark.parametrize("shape", [(1, 1), (1, 97), (97, 1), (31, 33)])
def test_thin_images(path, shape):
    written = RNG.integers(0, 65536, shape, dtype=np.uint16)
    tifffile.imwrite(path, written)
    np.testing.assert_array_equal(read_image(path)[0], written[None])


@pytest.mark.parametrize(
    ("shape", "expected"), [((2, 30, 40), (2, 30, 40)), ((30, 40, 2), (2, 30, 40)), ((16, 30, 40), (16, 30, 40))]
)
def test_without_axes_the_smallest_outer_one_holds_channels(path, shape, expected):
    written = RNG.integers(0, 65536, shape, dtype=np.uint16)
    tifffile.imwrite(path, written, photometric="minisblack")
    image, info = read_image(path)
    assert image.shape == info.shape == expected
    np.testing.assert_array_equal(image, written if shape == expected else np.moveaxis(written, -1, 0))
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(3, 9, 4, 8), image[:, 3:9, 4:8])


@pytest.mark.parametrize("shape", [(17, 30, 40), (5, 30, 5), (30, 4, 40)])
def test_ambiguous_axes_are_refused(path, shape):
    tifffile.imwrite(path, np.zeros(shape, np.uint16), photometric="minisblack")
    fails(path, "without names for its axes", "axes CYX")


@pytest.mark.parametrize(("axes", "words"), [("ZYX", "a z-stack of 4"), ("TYX", "a time series of 4"), ("RYX", "axes")])
def test_stacks_are_refused(path, axes, words):
    tifffile.imwrite(path, np.zeros((4, 30, 40), np.uint16), photometric="minisblack", metadata={"axes": axes})
    if axes == "RYX":
        assert read_info(path).shape == (4, 30, 40)  # an axis of unknown meaning counts as unnamed
    else:
        fails(path, words, "unsupported")


def test_stacks_with_channels_and_colour_stacks_are_refused(path):
    tifffile.imwrite(path, np.zeros((2, 3, 30, 40), np.uint16), imagej=True, metadata={"axes": "ZCYX"})
    fails(path, "a z-stack of 2")
    tifffile.imwrite(path, np.zeros((2, 30, 40, 3), np.uint8), ome=True, photometric="rgb", metadata={"axes": "CYXS"})
    fails(path, "has the axes CYXS")


def test_several_images_in_one_file_are_refused(path):
    with tifffile.TiffWriter(path) as writer:
        writer.write(np.zeros((8, 9), np.uint8))
        writer.write(np.zeros((5, 6), np.uint16))
    fails(path, "holds 2 images")


def test_a_thumbnail_is_no_second_image(path):
    with tifffile.TiffWriter(path) as writer:
        writer.write(np.full((8, 9), 7, np.uint8), metadata=None)
        writer.write(np.zeros((4, 4), np.uint8), subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read_image(path)[0], np.full((1, 8, 9), 7))


def test_a_pyramid_is_read_at_full_size(path):
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(FULL_RANGE["uint16"], subifds=1, **CYX)
        writer.write(FULL_RANGE["uint16"][:, ::2, ::2], subfiletype=1, photometric="minisblack")
    np.testing.assert_array_equal(read_image(path)[0], FULL_RANGE["uint16"])


def test_ome_names_and_pixel_size(path):
    for size, unit, expected in [(0.325, "µm", 0.325), (325, "nm", 0.325), (3.25e-4, "mm", 0.325)]:
        metadata = {"axes": "CYX", "Channel": {"Name": ["hoechst", "calcein", "pi"]}}
        metadata |= {f"PhysicalSize{a}": size for a in "XY"} | {f"PhysicalSize{a}Unit": unit for a in "XY"}
        tifffile.imwrite(path, FULL_RANGE["uint16"], ome=True, photometric="minisblack", metadata=metadata)
        info = read_info(path)
        assert info.channel_names == ("hoechst", "calcein", "pi")
        assert info.pixel_size_um == pytest.approx(expected)


def test_ome_without_names_or_with_unequal_pixels(path):
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.4}
    tifffile.imwrite(path, FULL_RANGE["uint8"], ome=True, photometric="minisblack", metadata=metadata)
    info = read_info(path)
    assert info.channel_names is None
    assert info.pixel_size_um is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"imagej": True, "resolution": (1 / 0.31, 1 / 0.31), "metadata": {"axes": "CYX", "unit": "um"}}, 0.31),
        ({"imagej": True, "resolution": (1 / 0.31,) * 2, "metadata": {"axes": "CYX", "unit": "\\u00B5m"}}, 0.31),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"axes": "CYX", "unit": "pixel"}}, None),
        ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (25400 * 2, 25400 * 2), "resolutionunit": "INCH"}, 0.5),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),  # a print setting
        ({"resolution": (20000, 20000), "resolutionunit": "NONE"}, None),
        ({"resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_pixel_size_from_tags(path, options, expected):
    tifffile.imwrite(path, FULL_RANGE["uint8"], **{"photometric": "minisblack", "metadata": {"axes": "CYX"}, **options})
    assert read_info(path).pixel_size_um == (None if expected is None else pytest.approx(expected, rel=1e-3))


def test_ome_tiff_that_names_other_files_is_refused(tmp_path):
    parts = [tmp_path / f"part{i}.ome.tif" for i in range(2)]
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0"><Image ID="Image:0"><Pixels '
        'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="9" SizeY="8" SizeC="2" SizeZ="1" SizeT="1">'
        + "".join(
            f'<TiffData FirstC="{i}" IFD="0" PlaneCount="1"><UUID FileName="part{i}.ome.tif">{i}</UUID></TiffData>'
            for i in range(2)
        )
        + "</Pixels></Image></OME>"
    )
    for part in parts:
        tifffile.imwrite(part, np.zeros((8, 9), np.uint8), description=xml, metadata=None)
    fails(parts[0], "OME-XML", "all planes in one file")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.array([[-32768, 32767]], np.int16), "float32"),
        (np.array([[-128, 127]], np.int8), "float32"),
        (np.array([[-(2**24), 2**24]], np.int32), "float32"),
        (np.array([[0, 2**24]], np.uint32), "float32"),
        (np.array([[0, 2**24]], np.uint64), "float32"),
        (np.array([[0.5, -0.25]], np.float64), "float32"),
        (np.array([[0.5, 65504]], np.float16), "float32"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.dtype.name,
)
def test_other_types_become_float32_without_loss(path, stored, expected):
    tifffile.imwrite(path, stored)
    image, info = read_image(path)
    assert image.dtype.name == info.dtype == expected
    np.testing.assert_array_equal(image[0].astype(np.float64), stored.astype(np.float64))


@pytest.mark.parametrize(
    "stored",
    [
        np.array([[2**24 + 1]], np.int32),
        np.array([[2**32 - 1]], np.uint32),
        np.array([[2**63 - 1]], np.int64),
        np.array([[0.1]], np.float64),
        np.array([[1e300]], np.float64),
    ],
    ids=lambda v: v.dtype.name,
)
def test_a_lossy_conversion_is_refused(path, stored):
    tifffile.imwrite(path, stored)
    fails(path, f"1 {stored.dtype} values that float32 cannot hold", "unsupported")


def test_one_bit_images_become_0_and_1(path):
    stored = RNG.random((9, 13)) < 0.5
    tifffile.imwrite(path, stored, photometric="minisblack")
    image, info = read_image(path)
    assert image.dtype.name == info.dtype == "uint8"
    np.testing.assert_array_equal(image[0], stored)


def test_complex_numbers_are_refused(path):
    tifffile.imwrite(path, np.zeros((4, 4), np.complex64))
    fails(path, "holds complex64 numbers")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_counted(path, bad):
    stored = np.zeros((9, 9), np.float32)
    stored[2:4, 5] = bad
    tifffile.imwrite(path, stored)
    fails(path, "holds 2 NaN or infinite values")
    with open_image(path) as reader:
        assert reader.read(4, 9, 0, 9).max() == 0  # a clean window of the same file


def test_inverted_and_indexed_tiff_are_refused_as_images(path):
    tifffile.imwrite(path, np.zeros((4, 4), np.uint8), photometric="miniswhite")
    fails(path, "MINISWHITE")
    colours = RNG.integers(0, 65536, (3, 256), dtype=np.uint16)
    tifffile.imwrite(path, np.full((4, 4), 3, np.uint8), photometric="palette", colormap=colours)
    fails(path, "PALETTE")
    assert read_label_image(path).tolist() == [[3] * 4] * 4


def test_imagej_lookup_tables_are_only_colours(path):
    colours = RNG.integers(0, 65536, (3, 256), dtype=np.uint16)
    tifffile.imwrite(path, np.full((4, 4), 3, np.uint8), imagej=True, colormap=colours)
    assert read_image(path)[0].tolist() == [[[3] * 4] * 4]


def test_turned_tiff_is_refused(path):
    tifffile.imwrite(path, np.zeros((4, 6), np.uint8), extratags=[(274, "H", 1, 6, True)])
    fails(path, "orientation 6")


def test_other_compressions_are_named(path):
    tifffile.imwrite(path, np.zeros((32, 32), np.uint8), compression="jpeg2000")
    fails(path, "JPEG2000", "unsupported")


def test_vast_tiles_are_refused_from_the_header(path):
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8), tile=(16, 16), metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["TileWidth"].overwrite(65520)
        tiff.pages[0].tags["TileLength"].overwrite(65520)
    fails(path, "tiles hold 4292870400 samples")


# --- PNG and JPEG


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_png_at_full_depth(tmp_path, dtype, channels):
    written = np.moveaxis(FULL_RANGE[dtype][:channels], 0, -1)
    path = tmp_path / "field.png"
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(written.squeeze())))
    image, info = read_image(path)
    assert image.dtype.name == info.dtype == dtype
    np.testing.assert_array_equal(image, FULL_RANGE[dtype][:channels])
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(3, 20, 7, 9), image[:, 3:20, 7:9])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits_comes_back_as_stored(tmp_path, bits):
    stored = RNG.integers(0, 2**bits, (5, 16), dtype=np.uint8)
    packed = np.packbits(((stored[..., None] >> np.arange(bits)[::-1]) & 1).reshape(5, -1), axis=1)
    path = tmp_path / "field.png"
    path.write_bytes(build_png(16, 5, bits, 0, b"".join(b"\0" + row.tobytes() for row in packed)))
    np.testing.assert_array_equal(read_image(path)[0][0], stored)
    np.testing.assert_array_equal(read_label_image(path), stored)


def build_png(width, height, bits, colour_type, raw, extra=b""):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(raw, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


def test_palette_png_is_colour_as_image_and_index_as_labels(tmp_path):
    path = tmp_path / "field.png"
    indices = RNG.integers(0, 4, (6, 7), dtype=np.uint8)
    picture = Image.frombytes("P", (7, 6), indices.tobytes())
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 9], [1, 2, 3]], np.uint8)
    picture.putpalette(colours.tobytes())
    picture.save(path)
    np.testing.assert_array_equal(read_image(path)[0], np.moveaxis(colours[indices], -1, 0))
    np.testing.assert_array_equal(read_label_image(path), indices)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_opaque_alpha_is_dropped_and_any_other_refused(tmp_path, channels, dtype):
    path = tmp_path / "field.png"
    stored = RNG.integers(0, np.iinfo(dtype).max, (6, 7, channels)).astype(dtype)
    stored[..., -1] = np.iinfo(dtype).max
    path.write_bytes(imagecodecs.png_encode(stored))
    image, info = read_image(path)
    assert image.shape == info.shape == (channels - 1, 6, 7)
    np.testing.assert_array_equal(image, np.moveaxis(stored[..., :-1], -1, 0))
    stored[2, 3, -1] -= 1
    path.write_bytes(imagecodecs.png_encode(stored))
    fails(path, "not opaque at 1 pixels")


def test_tiff_alpha(path):
    stored = RNG.integers(0, 255, (6, 7, 4)).astype(np.uint8)
    stored[..., 3] = 255
    tifffile.imwrite(path, stored, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(path)[0], np.moveaxis(stored[..., :3], -1, 0))
    stored[..., 3] = 17
    tifffile.imwrite(path, stored, photometric="rgb", extrasamples=["unassalpha"])
    fails(path, "not opaque at 42 pixels", "minisblack")
    tifffile.imwrite(path, stored, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(read_image(path)[0], np.moveaxis(stored, -1, 0))


def test_png_transparent_colour_counts_as_alpha(tmp_path):
    path = tmp_path / "field.png"
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(path, transparency=5)
    fails(path, "not opaque at 1 pixels")
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(path, transparency=99)
    np.testing.assert_array_equal(read_image(path)[0], np.arange(12).reshape(1, 3, 4))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_agrees_with_pillow(tmp_path, mode):
    path = tmp_path / "field.jpg"
    Image.fromarray(FULL_RANGE["uint8"][0]).convert(mode).save(path, quality=90)
    expected = np.asarray(Image.open(path))
    image, info = read_image(path)
    assert info.shape == image.shape == (len(mode), 37, 53)
    np.testing.assert_array_equal(image, expected[None] if mode == "L" else np.moveaxis(expected, -1, 0))
    fails(path, "JPEG, which changes the labels", read=read_label_image)


def test_unfaithful_kinds_are_refused_by_name(tmp_path):
    grey = Image.fromarray(np.zeros((8, 9), np.uint8))
    cases = {
        "cmyk.jpg": (grey.convert("CMYK"), {}, "CMYK JPEG"),
        "turned.jpg": (grey, {"exif": exif(6)}, "EXIF orientation 6"),
        "turned.png": (grey, {"exif": exif(3)}, "EXIF orientation 3"),
        "moving.png": (grey, {"save_all": True, "append_images": [Image.new("L", (9, 8), 9)]}, "is animated"),
    }
    for name, (picture, options, words) in cases.items():
        picture.save(tmp_path / name, **options)
        fails(tmp_path / name, words, "unsupported")
    grey.save(tmp_path / "upright.jpg", exif=exif(1))
    assert read_image(tmp_path / "upright.jpg")[0].shape == (1, 8, 9)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def test_files_that_are_no_images(tmp_path):
    moving = io.BytesIO()
    Image.new("L", (4, 4)).save(moving, "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 255)])
    contents = {
        "empty.png": (b"", "an empty file"),
        "paper.png": (b"%PDF-1.7 ...", "a PDF"),
        "moving.png": (moving.getvalue(), "a GIF"),
        "drawing.png": (b"<svg xmlns='x'/>", "XML or SVG"),
        "noise.tif": (b"\x01\x02\x03", "no image"),
    }
    for name, (data, words) in contents.items():
        (tmp_path / name).write_bytes(data)
        fails(tmp_path / name, words, "TIFF, PNG or JPEG")
    fails(tmp_path, "is a folder")
    fails(tmp_path / "gone.tif", "cannot be opened")


def test_the_format_is_read_from_the_bytes_not_the_name(tmp_path):
    path = tmp_path / "field.png"
    tifffile.imwrite(path, FULL_RANGE["uint16"], **CYX)
    np.testing.assert_array_equal(read_image(path)[0], FULL_RANGE["uint16"])


def encoded_examples():
    tiff = {}
    for name, options in {
        "plain": {},
        "strips": {"compression": "zlib", "rowsperstrip": 8},
        "tiles": {"compression": "lzw", "tile": (16, 16)},
        "ome": {"ome": True, "compression": "zlib"},
    }.items():
        stream = io.BytesIO()
        tifffile.imwrite(stream, FULL_RANGE["uint16"], **CYX, **options)
        tiff[name] = stream.getvalue()
    jpeg = io.BytesIO()
    Image.fromarray(np.moveaxis(FULL_RANGE["uint8"], 0, -1)).save(jpeg, "JPEG")
    png = imagecodecs.png_encode(np.ascontiguousarray(np.moveaxis(FULL_RANGE["uint16"], 0, -1)))
    return {**tiff, "png": png, "jpeg": jpeg.getvalue()}


EXAMPLES = encoded_examples()


@pytest.mark.parametrize("kind", ["plain", "strips", "tiles", "png", "jpeg"])
@pytest.mark.parametrize("part", [0.2, 0.6, 0.95])
def test_truncated_files_are_data_errors(tmp_path, kind, part):
    path = tmp_path / "field.bin"
    data = EXAMPLES[kind]
    path.write_bytes(data[: int(len(data) * part)])
    fails(path)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}])
def test_a_jpeg_whose_data_ends_before_its_end_marker_is_no_image(tmp_path, mode, options):
    """As a repair tool, or a camera that was switched off, leaves it; decoders make up the rest without a word."""
    path = tmp_path / "field.jpg"
    field = Image.fromarray(np.moveaxis(FULL_RANGE["uint8"], 0, -1)).convert(mode).resize((300, 200))
    preview = io.BytesIO()
    field.resize((16, 16)).save(preview, "JPEG")
    field.save(path, quality=90, exif=b"Exif\0\0" + preview.getvalue(), **options)
    whole = path.read_bytes()
    assert whole.endswith(b"\xff\xd9")
    pixels = np.array(Image.open(io.BytesIO(whole)))
    path.write_bytes(whole + preview.getvalue())  # another picture behind it, as telephones have
    np.testing.assert_array_equal(read_image(path)[0], np.moveaxis(np.atleast_3d(pixels), -1, 0))
    for cut in (5, 100, len(whole) // 3):
        path.write_bytes(whole[: -2 - cut] + b"\xff\xd9")
        np.asarray(Image.open(path))  # says nothing
        fails(path, "the data ends before the image is complete", "undamaged image file")
        path.write_bytes(whole[: -2 - cut] + bytes(2 + cut))  # room that was taken before it was written to
        fails(path, "cannot be decoded")
    path.write_bytes(whole[:-2] + bytes(40))
    fails(path, "there is no end marker")


@pytest.mark.parametrize(
    ("of_file", "of_page"),
    [
        ({"ome": True}, {}),
        ({"ome": True, "bigtiff": True}, {}),
        ({"ome": True, "byteorder": ">"}, {}),
        ({"imagej": True}, {}),
        ({}, {}),
        ({}, {"truncate": True}),
    ],
    ids=["ome", "big", "big endian", "imagej", "shaped", "one directory"],
)
def test_a_stack_cut_short_is_never_one_of_fewer_channels(path, of_file, of_page):
    stack = np.random.default_rng(0).integers(0, 2**16, (3, 32, 32)).astype(np.uint16)
    with tifffile.TiffWriter(path, **of_file) as writer:
        writer.write(stack, **CYX, **of_page)
    whole = path.read_bytes()
    np.testing.assert_array_equal(read_image(path)[0], stack)
    refused = 0
    for length in range(len(whole) - 1, 200, -97):
        path.write_bytes(whole[:length])
        try:
            image, info = read_image(path)
        except DataError as error:
            refused += str(path) in str(error)
        else:
            # The last byte of some files is a filler.
            assert length == len(whole) - 1
            np.testing.assert_array_equal(image, stack)
            assert info.shape == stack.shape
    assert refused > 50


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(
    kind=st.sampled_from(sorted(EXAMPLES)),
    changes=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_headers_never_raise_anything_else(tmp_path, kind, changes):
    path = tmp_path / "field.bin"
    data = bytearray(EXAMPLES[kind])
    for position, value in changes:
        data[position % len(data)] = value
    path.write_bytes(data)
    for read in (read_image, read_label_image):
        with suppress(DataError):
            read(path)


# --- limits


def test_bombs_are_refused_from_the_header(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    # 30000 x 30000 one-bit pixels: 112 MB of zeros in about 110 kB, 900 MB once decoded.
    path.write_bytes(build_png(30000, 30000, 1, 0, bytes(30000 * (1 + 30000 // 8))))
    assert path.stat().st_size < 2**20 // 4
    monkeypatch.setattr(imagecodecs, "png_decode", lambda data: pytest.fail("decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fails(path, "claims 900000000 samples", "decompression bomb")
        with pytest.raises(DataError, match="900000000"):
            open_image(path)
    assert Image.MAX_IMAGE_PIXELS == 89478485  # Pillow's own limit is untouched
    assert read_info(path).shape == (1, 30000, 30000)


def test_bomb_headers_of_every_format(tmp_path):
    png, tiff, jpeg = (tmp_path / name for name in ("a.png", "a.tif", "a.jpg"))
    png.write_bytes(build_png(2**31 - 1, 2**31 - 1, 16, 6, b""))
    fails(png, "at most 2147483648 in one read")
    tifffile.imwrite(tiff, np.zeros((4, 4), np.uint8), metadata=None, compression="zlib")
    with tifffile.TiffFile(tiff, mode="r+b") as handle:
        for tag in ("ImageWidth", "ImageLength"):
            handle.pages[0].tags[tag].overwrite(60000)
    fails(tiff, "3600000000 samples")
    Image.new("L", (16, 16)).save(jpeg)
    data = jpeg.read_bytes()
    start = data.index(b"\xff\xc0") + 5
    jpeg.write_bytes(data[:start] + struct.pack(">HH", 65500, 65500) + data[start + 4 :])
    fails(jpeg, "4290250000 samples")


def test_max_pixels_is_the_callers_limit(path):
    tifffile.imwrite(path, FULL_RANGE["uint8"], **CYX)
    size = FULL_RANGE["uint8"].size
    read_image(path, max_pixels=size)
    with pytest.raises(DataError, match=f"holds {size} samples.*at most {size - 1}"):
        read_image(path, max_pixels=size - 1)
    with open_image(path, max_pixels=30) as reader:  # of a TIFF, the limit is that of one read
        reader.read(0, 2, 0, 5)
        with pytest.raises(DataError, match="33 samples"):
            reader.read(0, 1, 0, 11)


def test_a_vast_chain_of_pages_ends_early(path, monkeypatch):
    with tifffile.TiffWriter(path) as writer:
        for _ in range(40):
            writer.write(np.zeros((2, 2), np.uint8), contiguous=False, metadata=None)
    monkeypatch.setattr("cellvision.data.images.tiff.MAX_PAGES", 30)
    fails(path, "over 30 pages")


def test_windows_outside_the_image(path):
    tifffile.imwrite(path, FULL_RANGE["uint8"], **CYX)
    with open_image(path) as reader:
        for window in [(-1, 5, 0, 5), (0, 38, 0, 5), (5, 5, 0, 5), (0, 5, 50, 54)]:
            with pytest.raises(ShapeError, match=r"is 37x53 px, the window rows .* need a window inside"):
                reader.read(*window)


@pytest.mark.parametrize(
    "options", [{"tile": (128, 128), "compression": "zlib"}, {"rowsperstrip": 8, "compression": "lzw"}]
)
def test_only_touched_segments_are_decoded(path, options, monkeypatch):
    tifffile.imwrite(path, RNG.integers(0, 999, (1024, 1024), dtype=np.uint16), **options)
    decoded = []
    decode = tiff.TiffSource._decode
    monkeypatch.setattr(tiff.TiffSource, "_decode", lambda s, page, i: decoded.append(i) or decode(s, page, i))
    with open_image(path) as reader:
        reader.read(130, 250, 10, 300)
    assert len(decoded) == (3 if "tile" in options else 16)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("layout", ["one_strip", "strips", "tiles", "deflate"])
def test_bands_of_a_large_tiff_need_the_memory_of_a_band(tmp_path, layout):
    """6000 x 6000 uint16 is 69 MiB; reading it in bands of 500 rows (6 MiB) must not come near that."""
    path = tmp_path / "large.tif"
    options = {
        "one_strip": {},
        "strips": {"rowsperstrip": 16},
        "tiles": {"tile": (256, 256)},
        "deflate": {"compression": "zlib", "compressionargs": {"level": 1}, "rowsperstrip": 64},
    }[layout]
    tifffile.imwrite(path, np.tile(np.arange(6000, dtype=np.uint16), (6000, 1)), **options)
    script = """
import sys
from cellvision.data.images import open_image
def peak():  # ru_maxrss would start from the peak of the parent process
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
with open_image(sys.argv[1]) as reader:
    before = peak()
    reader.read(0, 500, 0, 6000)
    first = peak()
    total = sum(int(reader.read(top, top + 500, 0, 6000).sum()) for top in range(0, 6000, 500))
assert total == 6000 * 6000 * 5999 // 2, total
assert "torch" not in sys.modules
print((first - before) / 1024, (peak() - first) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    first, later = map(float, done.stdout.split())
    assert first < 40, done.stdout
    assert later < 10, done.stdout


# --- label images and folders


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int32", "uint32", "int64", "float32"])
def test_label_images_of_every_type(path, dtype):
    stored = RNG.integers(0, 2 if dtype == "bool" else 200, (9, 11)).astype(dtype)
    tifffile.imwrite(path, stored, photometric="minisblack")
    labels = read_label_image(path)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, stored)


def test_16_bit_png_labels(tmp_path):
    stored = RNG.integers(0, 65536, (9, 11), dtype=np.uint16)
    (tmp_path / "labels.png").write_bytes(imagecodecs.png_encode(stored))
    np.testing.assert_array_equal(read_label_image(tmp_path / "labels.png"), stored)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (np.zeros((3, 4, 5), np.uint8), "of 3 channels"),
        (np.full((4, 5), 0.5, np.float32), "fractions"),
        (np.full((4, 5), np.nan, np.float32), "fractions"),
        (np.full((4, 5), np.inf, np.float32), "labels from inf"),
        (np.full((4, 5), -1, np.int16), "labels from -1"),
        (np.full((4, 5), 2**31, np.uint32), "to 2147483648"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.dtype.name,
)
def test_what_is_no_label_image(path, stored, words):
    tifffile.imwrite(path, stored, photometric="minisblack")
    fails(path, words, read=read_label_image)


def test_list_images(tmp_path):
    for name in ["b.TIF", "a.png", "c.ome.tiff", "._a.png", "notes.txt", "d.jpeg"]:
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.TIF", "c.ome.tiff", "d.jpeg"]
    assert [p.name for p in list_images(tmp_path, "*.png")] == ["a.png"]
    with pytest.raises(DataError, match=r"has 4 images, none named like 'x\*'; need at least one of \.tif"):
        list_images(tmp_path, "x*")
    with pytest.raises(
        DataError, match=r'pattern="\*"; \[1\] in it stands for one character of these, and \[\[\] for a '
    ):
        list_images(tmp_path, "well[1]*")
    with pytest.raises(DataError, match="is no folder"):
        list_images(tmp_path / "gone")


def test_names_of_any_script(tmp_path):
    path = tmp_path / "plate 1 Zelle µ 细胞 🔬.ome.tif"
    tifffile.imwrite(path, FULL_RANGE["uint8"], **CYX)
    assert read_image(path)[0].shape == (3, 37, 53)
    assert image_stem(path) == "plate 1 Zelle µ 细胞 🔬"


@pytest.mark.shared
def test_shared_images_can_all_be_described():
    folder = Path(__file__).resolve().parents[5] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images are not beside the checkout")
    for name in ("livedead_mcf7_nc", "phase_usiigaci", "dsb2018"):
        for path in list_images(folder / name / "images")[:10]:
            image, info = read_image(path)
            np.testing.assert_array_equal(np.moveaxis(image, 0, -1).squeeze(), np.asarray(Image.open(path)))
            assert info.shape == image.shape
