"""An image in, its cells out: any size, in bounded memory, tiled or not by the same way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cellvision.bundle import Manifest
from cellvision.data.images import image_stem, open_image, read_info
from cellvision.errors import ConfigError, ShapeError, explain
from cellvision.runtime.budget import compute_costs, find_whole_bytes, measure_net
from cellvision.runtime.cells import Cells, build_cells
from cellvision.runtime.inputs import InputMatch, check_pixel_size, match_input
from cellvision.runtime.instances import CellSums
from cellvision.runtime.overlay import Overview, index_classes
from cellvision.runtime.session import Session, open_session
from cellvision.runtime.tile_run import KeepMaps, Progress, ReadRows, TileRun
from cellvision.runtime.tiling import SMALLEST_TILE_PX, Costs, Tile, choose_tile_px, round_up
from cellvision.runtime.writers import LabelSpool, StagedFiles, check_out_folder, write_label_image


class Predictor:
    """Runs a bundle on images. The one way from pixels to cells, in training reports and in the field alike.

    An image larger than a tile is worked on tile by tile. The net sees each tile with a margin, cells are split per
    tile and joined across seams (see stitching.py), so no cell is cut or counted twice. What can differ from an
    untiled run is what the margin cannot show: nets that look further than overlap_px, and nets with attention over
    the whole image.

    Attributes:
        manifest: of the bundle.
        session: the open bundle.
    """

    def __init__(
        self,
        bundle_folder: Path | str,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        memory_mib: int = 1024,
        tile_px: int | None = None,
        overlap_px: int | None = None,
    ) -> None:
        """Open a bundle.

        Args:
            bundle_folder: as written by export.
            provider: "cpu", "cuda" ..; no fallback to another.
            threads: processor threads of the net, >= 1; None for all cores.
            memory_mib: most memory for predicting one image, beside what the process already holds, the arrays that
                go in and come out, and some hundred bytes per cell. Tiles are made smaller until they fit; what the
                net needs per pixel is measured when the bundle is opened. Device memory of a GPU is not counted.
            tile_px: distance between tiles; None starts from the bundle's and halves it as memory asks.
            overlap_px: margin around each tile, better at least as wide as a cell; None for the bundle's. Both are
                rounded up to a multiple of the net's stride.

        Raises:
            BundleError: the bundle cannot be used; see `open_session`.
            ConfigError: the provider is not available, or a number is below 1.
        """
        for name, value in (("memory_mib", memory_mib), ("tile_px", tile_px), ("overlap_px", overlap_px)):
            if value is not None and value < 1:
                raise ConfigError(explain(got=f"{name}={value}", need="a whole number from 1 up", hint="leave it out"))
        self.session: Session = open_session(bundle_folder, provider=provider, threads=threads)
        self.manifest: Manifest = self.session.manifest
        self._net_bytes = measure_net(self.session)
        stride = self.manifest.stride
        self._memory_mib = memory_mib
        self._overlap_px = round_up(overlap_px or self.manifest.overlap_px, stride)
        self._largest_tile_px = round_up(tile_px or self.manifest.tile_px, stride)
        self._smallest_tile_px = self._largest_tile_px if tile_px else round_up(SMALLEST_TILE_PX, stride)

    def __call__(
        self,
        image: np.ndarray,
        *,
        channel_names: tuple[str, ...] | None = None,
        pixel_size_um: float | None = None,
        intensity_scale: float | None = None,
        progress: Progress | None = None,
    ) -> Cells:
        """The cells of an image in memory.

        Args:
            image: (H, W) or (C, H, W), raw counts of a dtype in the manifest's image_dtypes.
            channel_names: of the image; where given, channels are found by name, else taken in the bundle's order.
            pixel_size_um: edge of a pixel, for areas; None where unknown.
            intensity_scale: factor from the image's counts to the training counts, or None for equal units.
            progress: told after each tile.

        Raises:
            ShapeError: not (H, W) or (C, H, W), or empty.
            BundleError: dtype or channels do not suit the bundle.
            DataError: NaN or infinity.
            ConfigError: the memory does not suffice.
        """
        return self._predict_array(
            image,
            channel_names=channel_names,
            pixel_size_um=pixel_size_um,
            intensity_scale=intensity_scale,
            progress=progress,
        )

    def predict_with_probabilities(
        self,
        image: np.ndarray,
        *,
        channel_names: tuple[str, ...] | None = None,
        pixel_size_um: float | None = None,
        intensity_scale: float | None = None,
    ) -> tuple[Cells, np.ndarray]:
        """The cells, and the net's (K, H, W) float32 class probabilities of every pixel. Arguments as in a call."""
        probabilities = np.zeros((len(self.manifest.classes), *image.shape[-2:]), np.float32)

        def keep(tile: Tile, core: np.ndarray) -> None:
            probabilities[:, tile.rows.start : tile.rows.stop, tile.columns.start : tile.columns.stop] = core

        cells = self._predict_array(
            image,
            channel_names=channel_names,
            pixel_size_um=pixel_size_um,
            intensity_scale=intensity_scale,
            keep_maps=keep,
        )
        return cells, probabilities

    def predict_to_folder(
        self,
        path: Path | str,
        out_dir: Path | str,
        *,
        name: str | None = None,
        channel_names: tuple[str, ...] | None = None,
        pixel_size_um: float | None = None,
        intensity_scale: float | None = None,
        overlay: bool = True,
        progress: Progress | None = None,
    ) -> Cells:
        """Write ``<name>_labels.tif`` and ``<name>_overlay.png`` of an image file; its cells without label image.

        The image is read, and the labels are written, a few rows at a time. Nothing is written unless all succeeds.

        Args:
            path: image file.
            out_dir: another folder than the image's, so that no input can be overwritten.
            name: None for the file name without its ending.
            channel_names: of the file's channels; None for those in the file, if any.
            pixel_size_um: None for that in the file, if any.
            intensity_scale: see `__call__`.
            overlay: False leaves the picture out.
            progress: told after each tile.

        Raises:
            DataError: the file cannot be read.
            BundleError: the image does not suit the bundle.
            ConfigError: out_dir is the image's folder, or the memory does not suffice.
        """
        path, out_dir = Path(path), Path(out_dir)
        check_out_folder([path], out_dir)
        check_pixel_size(pixel_size_um)
        info = read_info(path)
        size, pixel_size_um = info.shape[1:], pixel_size_um or info.pixel_size_um
        match = self._match(path.name, info.dtype, info.shape[0], channel_names or info.channel_names, intensity_scale)
        costs = compute_costs(
            self._net_bytes,
            channels=info.shape[0],
            dtype=info.dtype,
            whole_bytes=find_whole_bytes(info),
            overlay_shape=size if overlay else None,
        )
        run = self._plan(match, size, costs)
        with open_image(path) as reader:
            return self._stream(
                run,
                lambda top, bottom: reader.read(top, bottom, 0, size[1]),
                out_dir / (name or image_stem(path)),
                overlay=overlay,
                pixel_size_um=pixel_size_um,
                progress=progress,
            )

    def _stream(
        self,
        run: TileRun,
        read_rows: ReadRows,
        target: Path,
        *,
        overlay: bool,
        pixel_size_um: float | None,
        progress: Progress | None,
    ) -> Cells:
        """Write the files whose names begin with ``target``, and return the cells."""
        with StagedFiles(target.parent) as staged, LabelSpool(target.parent) as spool:
            overview = Overview(shape=run.shape, channels=self.manifest.channels) if overlay else None
            for band in run.iterate_bands(read_rows, progress=progress):
                spool.add(band.ids)
                if overview:
                    overview.add_image(band.top, band.image)
            table, sums = run.resolve()
            cells = self._build(run, sums, None, pixel_size_um)
            write_label_image(
                staged.path(f"{target.name}_labels.tif"),
                _iterate_final(spool, table, overview, index_classes(cells)),
                shape=run.shape,
                largest=len(cells),
                pixel_size_um=pixel_size_um,
            )
            if overview:
                picture = Image.fromarray(overview.render(cells))
                picture.save(staged.path(f"{target.name}_overlay.png"), format="PNG")
        return cells

    def _predict_array(
        self,
        image: np.ndarray,
        *,
        channel_names: tuple[str, ...] | None,
        pixel_size_um: float | None,
        intensity_scale: float | None,
        progress: Progress | None = None,
        keep_maps: KeepMaps | None = None,
    ) -> Cells:
        check_pixel_size(pixel_size_um)
        planes = image[None] if image.ndim == 2 else image
        if planes.ndim != 3 or 0 in planes.shape:
            raise ShapeError(
                explain(
                    got=f"an image of shape {image.shape}",
                    need="(height, width) or (channels, height, width), at least 1x1 px",
                    hint="image[None] adds a channel axis",
                )
            )
        match = self._match("the image", planes.dtype.name, len(planes), channel_names, intensity_scale)
        costs = compute_costs(self._net_bytes, channels=len(planes), dtype=planes.dtype.name)
        run = self._plan(match, planes.shape[1:], costs)
        bands = run.iterate_bands(lambda top, bottom: planes[:, top:bottom], progress=progress, keep_maps=keep_maps)
        ids = np.concatenate([band.ids for band in bands])
        table, sums = run.resolve()
        return self._build(run, sums, table[ids], pixel_size_um)

    def _build(
        self, run: TileRun, sums: CellSums, label_image: np.ndarray | None, pixel_size_um: float | None
    ) -> Cells:
        return build_cells(
            sums,
            classes=self.manifest.classes,
            channels=tuple(channel.name for channel in self.manifest.channels),
            kind=self.manifest.kind,
            live_threshold=self.manifest.live_threshold,
            shape=run.shape,
            label_image=label_image,
            pixel_size_um=pixel_size_um,
            tiles=run.tiles,
        )

    def _match(
        self, name: str, dtype: str, channels: int, channel_names: tuple[str, ...] | None, scale: float | None
    ) -> InputMatch:
        return match_input(
            self.manifest, name=name, dtype=dtype, channels=channels, channel_names=channel_names, intensity_scale=scale
        )

    def _plan(self, match: InputMatch, shape: tuple[int, int], costs: Costs) -> TileRun:
        tile_px = choose_tile_px(
            shape,
            largest_px=self._largest_tile_px,
            smallest_px=self._smallest_tile_px,
            stride=self.manifest.stride,
            overlap_px=self._overlap_px,
            costs=costs,
            memory_mib=self._memory_mib,
        )
        return TileRun(self.session, match, shape=shape, tile_px=tile_px, overlap_px=self._overlap_px)


def _iterate_final(
    spool: LabelSpool, table: np.ndarray, overview: Overview | None, class_of_label: np.ndarray
) -> Iterator[np.ndarray]:
    """Bands with their final labels, drawn into the overview as they pass."""
    top = 0
    for ids in spool.iterate_rows():
        rows = table[ids]
        if overview:
            overview.add_labels(top, rows, class_of_label)
        top += len(rows)
        yield rows
