"""The C++ reader gives the pixels, names and pixel sizes of the Python reader, and refuses what that refuses."""

import logging

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import cpp_build
from cellvision.data.images import read_image, read_label_image
from cellvision.errors import DataError

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

RNG = np.random.default_rng(7)


@pytest.fixture(scope="module", autouse=True)
def built():
    return cpp_build.build()


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("tifffile").addHandler(logging.NullHandler())


def draw(shape, dtype):
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return RNG.random(shape) > 0.5
    if dtype.kind == "f":
        return (RNG.random(shape) * 100).astype(np.float16).astype(dtype)
    return RNG.integers(0, min(np.iinfo(dtype).max, 2**20) + 1, shape).astype(dtype)


def read_cpp(path):
    """What dump_image says: (pixels, channel names, pixel size), or the error's text."""
    done = cpp_build.run("tests/dump_image", path)
    if done.returncode == 2:
        return done.stderr.decode()
    assert done.returncode == 0, done.stderr.decode()
    head, raw = done.stdout.split(b"\n", 1)
    channels, height, width, dtype, names, pixel_size, agrees = head.decode().split("|")
    assert agrees == "agrees", "read_info and read_image differ"
    pixels = np.frombuffer(raw, dtype).reshape(int(channels), int(height), int(width))
    return pixels, tuple(names.split(",")) if names else None, float(pixel_size) or None


def compare(path):
    expected, info = read_image(path)
    found = read_cpp(path)
    assert not isinstance(found, str), found
    pixels, names, pixel_size_um = found
    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(pixels, expected)
    assert names == info.channel_names
    assert pixel_size_um == (info.pixel_size_um and pytest.approx(info.pixel_size_um, rel=1e-12))


def check_refused(path):
    with pytest.raises(DataError):
        read_image(path)
    text = read_cpp(path)
    assert isinstance(text, str)
    assert str(path) in text
    assert "; need " in text
    assert "; try: " in text
    assert text.count("\n") == 1


LAYOUTS = {
    "grey": ((37, 53), {}),
    "channels": ((3, 37, 53), {"photometric": "minisblack", "metadata": {"axes": "CYX"}}),
    "rgb": ((37, 53, 3), {"photometric": "rgb"}),
    "planar": ((3, 37, 53), {"photometric": "rgb", "planarconfig": "separate"}),
}


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits", "lzma", "jpeg"])
def test_compressed_tiffs(tmp_path, compression):
    cuts = [{}, {"tile": (16, 32)}, {"rowsperstrip": 7, "byteorder": ">"}, {"bigtiff": True}]
    cuts += [{"predictor": True}] if compression in ("lzw", "zlib", "zstd") else []
    for dtype in ("uint8",) if compression == "jpeg" else ("uint8", "uint16", "float32"):
        for layout, (shape, options) in LAYOUTS.items():
            for number, cut in enumerate(cuts):
                path = tmp_path / f"{dtype}_{layout}_{number}.tif"
                tifffile.imwrite(path, draw(shape, dtype), compression=compression, **options, **cut)
                compare(path)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_all_kinds_of_numbers(tmp_path, byteorder):
    kinds = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "float16", "float32", "float64")
    for dtype in kinds:
        path = tmp_path / f"{dtype}.tif"
        tifffile.imwrite(path, draw((19, 21), dtype), byteorder=byteorder, photometric="minisblack")
        compare(path)


def write_ome(path, image, **metadata):
    tifffile.imwrite(path, image, ome=True, photometric="minisblack", metadata={"axes": "CYX", **metadata})


def test_what_files_say_of_themselves(tmp_path):
    image = draw((2, 37, 53), "uint16")
    sizes = {"PhysicalSizeX": 0.65, "PhysicalSizeY": 0.65}
    units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    write_ome(tmp_path / "named.ome.tif", image, Channel={"Name": ["DAPI & <co>", "PI"]}, **sizes, **units)
    nanometres = {"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm"}
    write_ome(tmp_path / "nm.ome.tif", image, PhysicalSizeX=650, PhysicalSizeY=650, **nanometres)
    write_ome(tmp_path / "uneven.ome.tif", image, PhysicalSizeX=0.5, PhysicalSizeY=0.7, **units)
    imagej = {"imagej": True, "resolution": (1 / 0.65, 1 / 0.65)}
    tifffile.imwrite(tmp_path / "imagej.tif", image, metadata={"axes": "CYX", "unit": "um"}, **imagej)
    tifffile.imwrite(tmp_path / "escaped.tif", image, metadata={"axes": "CYX", "unit": "\\u00B5m"}, **imagej)
    tifffile.imwrite(tmp_path / "print.tif", image[0], resolution=(72, 72), resolutionunit="INCH")
    tifffile.imwrite(tmp_path / "cm.tif", image[0], resolution=(2e4, 2e4), resolutionunit="CENTIMETER")
    for path in sorted(tmp_path.iterdir()):
        compare(path)
    assert read_cpp(tmp_path / "named.ome.tif")[1:] == (("DAPI & <co>", "PI"), 0.65)


def test_axes_as_in_python(tmp_path):
    kinds = {"first": (3, 37, 53), "last": (37, 53, 2), "one_row": (1, 50), "point": (1, 1)}
    for name, shape in kinds.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", draw(shape, "uint16"), photometric="minisblack")
        tifffile.imwrite(tmp_path / f"{name}_plain.tif", draw(shape, "uint16"), photometric="minisblack", metadata=None)
        tifffile.imwrite(tmp_path / f"{name}_one.tif", draw(shape, "uint16"), photometric="minisblack", truncate=True)
    for path in sorted(tmp_path.iterdir()):
        compare(path)


def test_png_and_jpeg(tmp_path):
    colour = np.asarray(Image.fromarray(draw((9, 13, 3), "uint8")).resize((203, 151)))
    for quality, subsampling in ((30, 0), (75, 2), (95, 1)):
        Image.fromarray(colour).save(tmp_path / f"{quality}.jpg", quality=quality, subsampling=subsampling)
    Image.fromarray(colour).save(tmp_path / "steps.jpg", progressive=True)
    Image.fromarray(colour[..., 0]).save(tmp_path / "grey.jpg")
    for bits in (1, 2, 4):
        Image.fromarray(colour[..., 0] % 2**bits).save(tmp_path / f"bits{bits}.png", bits=bits)
    Image.fromarray(colour).quantize(16).save(tmp_path / "palette.png")
    for name, shape in (("grey16", (37, 53)), ("colour16", (37, 53, 3)), ("colour8", (37, 53, 3))):
        pixels = draw(shape, "uint16" if "16" in name else "uint8")
        (tmp_path / f"{name}.png").write_bytes(imagecodecs.png_encode(pixels))
    opaque = np.concatenate([colour, np.full((151, 203, 1), 255, np.uint8)], axis=-1)
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    tifffile.imwrite(tmp_path / "opaque.tif", opaque, photometric="rgb", extrasamples=["unassalpha"])
    for path in sorted(tmp_path.iterdir()):
        compare(path)


def write_odd_files(folder):
    image = draw((37, 53), "uint16")
    grey, colour = image.astype(np.uint8), draw((37, 53, 3), "uint8")
    tifffile.imwrite(folder / "z.tif", draw((3, 37, 53), "uint8"), imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(folder / "t.ome.tif", draw((3, 37, 53), "uint8"), ome=True, metadata={"axes": "TYX"})
    tifffile.imwrite(folder / "many.tif", draw((30, 37, 53), "uint8"))
    tifffile.imwrite(folder / "middle.tif", draw((37, 4, 53), "uint8"))
    tifffile.imwrite(folder / "white.tif", grey, photometric="miniswhite")
    tifffile.imwrite(folder / "palette.tif", grey, photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    tifffile.imwrite(folder / "large.tif", np.full((5, 5), 2**25 + 1, np.uint32))
    tifffile.imwrite(folder / "nan.tif", np.full((5, 5), np.nan, np.float32))
    tifffile.imwrite(folder / "fraction.tif", np.full((5, 5), 0.1))
    with tifffile.TiffWriter(folder / "two.tif") as tiff:
        tiff.write(grey)
        tiff.write(grey[:20])
    Image.fromarray(np.dstack([colour, grey])).save(folder / "clear.png")
    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(colour).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(colour).save(folder / "turned.png", exif=turned)
    Image.fromarray(colour).save(folder / "moving.png", save_all=True, append_images=[Image.fromarray(colour[::-1])])
    Image.fromarray(draw((37, 53, 4), "uint8"), "CMYK").save(folder / "print.jpg")
    for name, start in (("pdf", b"%PDF-1.4"), ("text", b"hello"), ("empty", b""), ("zip", b"PK\3\4")):
        (folder / f"{name}.tif").write_bytes(start)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_python_refuses_is_refused(tmp_path):
    write_odd_files(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        check_refused(path)
    check_refused(tmp_path / "not there.tif")
    check_refused(tmp_path)


@pytest.mark.parametrize(
    ("code", "text", "vendor"),
    [
        (34412, None, "Zeiss LSM"),
        (33628, None, "Metamorph STK"),
        (34362, None, "Olympus FluoView"),
        (305, "PerkinElmer-QPI 2", "PerkinElmer QPI"),
        (270, "Aperio Image Library v11", "Aperio SVS"),
        (270, "<scn></scn>\n", "Leica SCN"),
    ],
)
def test_files_with_rules_of_a_vendor_are_refused(tmp_path, code, text, vendor):
    """Python reads them by those rules; as plain TIFF their numbers could mean something else."""
    image, path = draw((37, 53), "uint16"), tmp_path / "field.tif"
    tag = (code, "s", 0, text, True) if text else (code, "I", 1, 7, True)
    tags = {"software": text} if code == 305 else {"software": None, "extratags": [tag]}
    tifffile.imwrite(path, image, photometric="minisblack", metadata=None, **tags)
    said = read_cpp(path)
    assert f"field.tif is a file of {vendor}, whose numbers may mean something else; unsupported; need " in said
    assert "; try: " in said


def test_a_file_that_ends_early_is_refused(tmp_path):
    colour = draw((64, 64, 3), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", draw((64, 64), "uint16"))
    tifffile.imwrite(tmp_path / "b.tif", colour, photometric="rgb", compression="zlib")
    Image.fromarray(colour).save(tmp_path / "c.png")
    Image.fromarray(colour).save(tmp_path / "d.jpg")
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for kept in (7, 40, len(whole) // 2):
            path.write_bytes(whole[:kept])
            check_refused(path)


def test_a_jpeg_whose_data_ends_before_its_end_marker_is_refused(tmp_path):
    path = tmp_path / "field.jpg"
    for mode in ("L", "RGB"):
        for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
            Image.fromarray(draw((100, 130, 3), "uint8")).convert(mode).save(path, **options)
            whole = path.read_bytes()
            path.write_bytes(whole + whole)
            compare(path)
            for cut in (1, 5, 100, len(whole) // 3):
                for end in (b"\xff\xd9", bytes(2 + cut)):
                    path.write_bytes(whole[: -2 - cut] + end)
                    check_refused(path)


def test_a_vast_claim_in_a_small_file_is_refused_before_memory_is_taken(tmp_path):
    with tifffile.TiffWriter(tmp_path / "vast.tif") as tiff:
        rows = (np.zeros((256, 256), np.uint8) for _ in range(1))
        tiff.write(rows, shape=(256, 256), dtype=np.uint8, tile=(256, 256), compression="zlib")
    data = bytearray((tmp_path / "vast.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "vast.tif") as tiff:
        places = [tiff.pages[0].tags[code].valueoffset for code in (256, 257)]
    for place in places:
        data[place : place + 2] = (30000).to_bytes(2, "little")
    (tmp_path / "vast.tif").write_bytes(bytes(data))
    check_refused(tmp_path / "vast.tif")
    assert "bomb" in read_cpp(tmp_path / "vast.tif")


def test_label_images(tmp_path):
    labels = draw((37, 53), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", labels, compression="zlib")
    tifffile.imwrite(tmp_path / "b.tif", labels.astype(np.float32))
    Image.fromarray(labels).save(tmp_path / "c.png")
    Image.fromarray((labels % 5).astype(np.uint8)).convert("P").save(tmp_path / "d.png")
    for path in sorted(tmp_path.iterdir()):
        done = cpp_build.run("tests/dump_image", path, "labels")
        assert done.returncode == 0, done.stderr
        found = np.frombuffer(done.stdout.split(b"\n", 1)[1], np.int32).reshape(37, 53)
        np.testing.assert_array_equal(found, read_label_image(path))
    tifffile.imwrite(tmp_path / "half.tif", np.full((3, 3), 0.5, np.float32))
    assert cpp_build.run("tests/dump_image", tmp_path / "half.tif", "labels").returncode == 2
