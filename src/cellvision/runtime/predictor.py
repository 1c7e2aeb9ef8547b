"""An image in, its cells out: any size, in bounded memory, tiled or not by the same way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cellvision.bundle import Manifest
from cellvision.data.images import image_stem, open_image, read_info
from cellvision.errors import BundleError, explain
from cellvision.runtime.cells import Cells
from cellvision.runtime.detections.found import Detections
from cellvision.runtime.detections.prediction import find_detections, predict_detected_cells, stream_detected_cells
from cellvision.runtime.files.writers import check_out_folder
from cellvision.runtime.graphs.detection_session import DetectionSession
from cellvision.runtime.maps.prediction import predict_map_cells, stream_map_cells
from cellvision.runtime.session import Session, open_bundle, open_session
from cellvision.runtime.tiles.budget import NetCosts, find_whole_bytes, measure_net, remember_costs
from cellvision.runtime.tiles.image_job import ImageJob, Progress
from cellvision.runtime.tiles.planner import JobPlanner, check_sizes, to_planes
from cellvision.runtime.tiles.tiling import Tile


class Predictor:
    """Runs a bundle on images. The one way from pixels to cells, in training reports and in the field alike.

    An image larger than a tile is worked on tile by tile. The net sees each tile with a margin. From maps, cells are
    split per tile and joined across seams (see stitching.py); cells that the net finds itself are joined by the rules
    of joining.py. So no cell is cut or counted twice. What can differ from an untiled run is what the margin cannot
    show: nets that look further than overlap_px, nets with attention over the whole image, and cells much longer than
    overlap_px that the net finds itself.

    A predictor may be used from several threads at once. A pickled one opens its bundle again where it arrives.

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
        batch: int = 1,
        provider_options: Mapping[str, str] | None = None,
        arena: str = "keep",
        warm_up: bool = False,
    ) -> None:
        """Open a bundle.

        Args:
            bundle_folder: as written by export.
            provider: "cpu", "cuda" ..; no fallback to another.
            threads: processor threads of the net, >= 1; None for all cores.
            memory_mib: most memory for predicting one image, beside what the process already holds, the arrays that
                go in and come out, some hundred bytes per cell, and 4 bytes for each pixel of a mask of each cell that
                the net finds itself. Tiles are made smaller until they fit; what the net needs per pixel is measured
                when the bundle is opened. A bundle of one graph makes all masks of a tile at once: there, a field with
                more than one cell for every 32 x 32 px takes more memory, and is done all the same. Device memory of a
                GPU is not counted.
            tile_px: distance between tiles; None takes the bundle's, or the largest that memory allows.
            overlap_px: margin around each tile, better at least as wide as a cell; None for the bundle's. Both are
                rounded up to a multiple of the net's stride.
            batch: at most so many tiles of one size go through the graph at once. More than 1 helps on a GPU.
            provider_options: of the provider by name, e.g. {"device_id": "1"}.
            arena: "keep", "shrink" or "none": what becomes of the net's memory after a run; see RunSettings.
            warm_up: run the graphs once at the size of a tile, so that the first image takes no longer than others.

        Raises:
            BundleError: the bundle cannot be used; see `open_session`.
            ConfigError: the provider is not available, or a number is below 1.
        """
        sizes = {"memory_mib": memory_mib, "tile_px": tile_px, "overlap_px": overlap_px, "batch": batch}
        check_sizes(**sizes)
        self.session: Session = open_session(
            bundle_folder, provider=provider, threads=threads, provider_options=provider_options, arena=arena
        )
        self._start(sizes)
        if warm_up:
            self.session.probe(self._planner.largest_window_px)

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
        job = self._plan_array(image, channel_names, pixel_size_um, intensity_scale, progress)
        if isinstance(self.session, DetectionSession):
            return predict_detected_cells(self.session, job)
        return predict_map_cells(self.session, job)

    def predict_with_probabilities(
        self,
        image: np.ndarray,
        *,
        channel_names: tuple[str, ...] | None = None,
        pixel_size_um: float | None = None,
        intensity_scale: float | None = None,
    ) -> tuple[Cells, np.ndarray]:
        """The cells, and the net's (K, H, W) float32 class probabilities of every pixel. Arguments as in a call.

        Raises:
            BundleError: also where the net finds cells and says nothing of pixels.
        """
        if isinstance(self.session, DetectionSession):
            raise self._refuse("probabilities of pixels", "of kind semantic or viability", "predictor(image)")
        probabilities = np.zeros((len(self.manifest.classes), *image.shape[-2:]), np.float32)

        def keep(tile: Tile, core: np.ndarray) -> None:
            probabilities[:, tile.rows.core, tile.columns.core] = core

        job = self._plan_array(image, channel_names, pixel_size_um, intensity_scale)
        return predict_map_cells(self.session, job, keep_maps=keep), probabilities

    def detect(
        self,
        image: np.ndarray,
        *,
        channel_names: tuple[str, ...] | None = None,
        intensity_scale: float | None = None,
        progress: Progress | None = None,
    ) -> Detections:
        """What an instance net finds, every score and overlaps included, as average precision is computed from.

        Boxes are in px of the image. From several tiles, what two of them found is there once. Arguments as in a call.

        Raises:
            BundleError: also where the net does not find cells itself.
        """
        if not isinstance(self.session, DetectionSession):
            raise self._refuse("detections", "of kind instance", "predictor(image)")
        return find_detections(self.session, self._plan_array(image, channel_names, None, intensity_scale, progress))

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
        Where the net finds cells itself, ``out_dir`` needs room for 4 bytes per pixel beside the results while the work
        lasts; the system holds of them in memory what there is room for, which memory_mib does not count.

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
            DataError: the file cannot be read, or there is no room in out_dir.
            BundleError: the image does not suit the bundle.
            ConfigError: out_dir is the image's folder, or the memory does not suffice.
        """
        path, out_dir = Path(path), Path(out_dir)
        check_out_folder([path], out_dir)
        info = read_info(path)
        target = out_dir / (name or image_stem(path))
        with open_image(path) as reader:
            job = self._planner.plan(
                lambda top, bottom: reader.read(top, bottom, 0, info.shape[2]),
                name=path.name,
                shape=info.shape,
                dtype=info.dtype,
                channel_names=channel_names or info.channel_names,
                intensity_scale=intensity_scale,
                pixel_size_um=info.pixel_size_um if pixel_size_um is None else pixel_size_um,
                progress=progress,
                whole_bytes=find_whole_bytes(info),
                overlay=overlay,
            )
            if isinstance(self.session, DetectionSession):
                return stream_detected_cells(self.session, job, target, overlay=overlay)
            return stream_map_cells(self.session, job, target, overlay=overlay)

    def __reduce__(self) -> tuple[Any, ...]:
        folder = self.session.folder.absolute()
        return _open_again, (type(self), folder, self.session.settings, self._net, self._sizes)

    def _start(self, sizes: Mapping[str, Any]) -> None:
        self.manifest: Manifest = self.session.manifest
        self._sizes = dict(sizes)
        self._net = measure_net(self.session)
        self._planner = JobPlanner(self.session, self._net, **sizes)

    def _plan_array(
        self,
        image: np.ndarray,
        channel_names: tuple[str, ...] | None,
        pixel_size_um: float | None,
        intensity_scale: float | None,
        progress: Progress | None = None,
    ) -> ImageJob:
        planes = to_planes(image)
        return self._planner.plan(
            lambda top, bottom: planes[:, top:bottom],
            name="the image",
            shape=planes.shape,
            dtype=planes.dtype.name,
            channel_names=channel_names,
            intensity_scale=intensity_scale,
            pixel_size_um=pixel_size_um,
            progress=progress,
        )

    def _refuse(self, what: str, kind: str, hint: str) -> BundleError:
        got = f"{what} of a bundle of kind {self.manifest.kind}"
        return BundleError(explain(got=got, need=f"a bundle {kind}", hint=hint))


def _open_again(kind: type[Predictor], folder: Path, settings: Any, net: NetCosts, sizes: dict[str, Any]) -> Predictor:
    """A predictor in another process, which need not measure again what the first one has measured."""
    predictor = kind.__new__(kind)
    predictor.session = open_bundle(folder, settings)
    remember_costs(predictor.session, net)
    predictor._start(sizes)
    return predictor
