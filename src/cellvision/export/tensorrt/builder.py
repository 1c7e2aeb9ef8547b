"""Engines for NVIDIA GPUs: one builder for TensorRT 10.12 and newer, TensorRT 11 and TensorRT-RTX.

All of them build *strongly typed*: every layer computes in the type that it has in the ONNX graph. TensorRT 11 has no
other way, so that fp16 and int8 are made in the graph, before it comes here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellvision.bundle import compute_sha256
from cellvision.errors import ConfigError, ExportError, explain
from cellvision.export.tensorrt.graph import check_graph, count_layers, describe_tensors, find_precision, load_graph
from cellvision.export.tensorrt.options import Shapes, TensorrtOptions, plan_image_shapes
from cellvision.export.tensorrt.progress import Journal, Tell, build_logger, build_monitor
from cellvision.runtime.engines.library import Gpu, call, find_gpu, import_backend, import_cuda, list_gpus
from cellvision.runtime.engines.sidecar import EngineSidecar, EngineTensor, write_sidecar

_MIB = 1 << 20


def build_engine(
    onnx: Path,
    engine: Path,
    options: TensorrtOptions,
    *,
    shapes: Mapping[str, Shapes] | None = None,
    tell: Tell | None = None,
) -> EngineSidecar:
    """The sidecar of ``engine``, now built of an ONNX graph; it lies beside the engine.

    Args:
        onnx: graph whose layers compute in ``options.precision`` already.
        engine: file to write; it and its sidecar appear only when the engine is built.
        options: see TensorrtOptions.
        shapes: of inputs with free sizes, by name; those that are not named here have the axes batch, channels,
            height and width, and get the options' sizes.
        tell: is told what the builder is doing. What it raises ends the build.

    Raises:
        MissingExtraError: the library is not installed.
        ConfigError: it is too old, does not start, or there is no GPU where it needs one; a timing cache of another
            GPU or version.
        ExportError: the graph is of another precision, has what no engine can have, or does not build.
    """
    onnx, engine = Path(onnx), Path(engine)
    trt = import_backend(options.backend)
    gpu = take_gpu(options)
    model = load_graph(onnx)
    check_graph(model, onnx)
    layers = count_layers(model)
    _check_precision(onnx, layers, options)
    inputs, outputs = describe_tensors(model)
    profile = {tensor.name: _choose_shapes(onnx, tensor, options, shapes or {}) for tensor in inputs}
    plan = _build(trt, onnx, options, profile, Journal(tell))
    _write(engine, plan)
    sidecar = EngineSidecar(
        library=options.backend,
        library_version=str(trt.__version__),
        gpu=gpu,
        engine_sha256=compute_sha256(engine),
        onnx_sha256=compute_sha256(onnx),
        precision=find_precision(layers),
        layers=layers,
        profile=profile,
        inputs=inputs,
        outputs=outputs,
    )
    write_sidecar(sidecar, engine)
    return sidecar


def take_gpu(options: TensorrtOptions) -> Gpu | None:
    """The GPU to build on, made the current one of this thread; None where none is there and none is needed."""
    if options.backend == "tensorrt_rtx" and not list_gpus():
        return None
    gpu = find_gpu(options.device)
    call(import_cuda().cudaSetDevice, options.device)
    return gpu


def _check_precision(path: Path, layers: dict[str, int], options: TensorrtOptions) -> None:
    if (found := find_precision(layers)) != options.precision:
        counts = ", ".join(f"{count} in {precision}" for precision, count in sorted(layers.items())) or "none"
        raise ExportError(
            explain(
                got=f"{path} computes in {found} (layers with weights: {counts}), trt.precision={options.precision}",
                need="a graph of that precision: an engine keeps what the graph has",
                hint=f"+trt={found}, or make an {options.precision} graph first",
            )
        )


def _choose_shapes(
    path: Path, tensor: EngineTensor, options: TensorrtOptions, given: Mapping[str, Shapes]
) -> tuple[tuple[int, ...], ...]:
    """Smallest, best and largest shape of one input."""
    shape = tensor.shape
    if tensor.name in given:
        found = given[tensor.name]
    elif all(isinstance(size, int) for size in shape):
        fixed = tuple(int(size) for size in shape)
        found = (fixed, fixed, fixed)
    elif len(shape) == 4 and isinstance(shape[1], int):
        found = plan_image_shapes(options, shape[1])
    else:
        found = ((), (), ())
    for sizes in found:
        pairs = list(zip(sizes, shape, strict=False))
        if len(sizes) != len(shape) or any(isinstance(want, int) and size != want for size, want in pairs):
            got = f"{path}: input {tensor.name!r} is {list(shape)}, its profile {[list(part) for part in found]}"
            need = "three shapes with its fixed sizes"
            raise ConfigError(explain(got=got, need=need, hint=f"shapes for {tensor.name!r}"))
    return found


def _build(trt: Any, path: Path, options: TensorrtOptions, profile: Mapping[str, Any], journal: Journal) -> Any:
    """The engine's bytes, as the library gives them."""
    logger = build_logger(trt, journal)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # the library made none; there is no GPU, or not enough memory
        need = "a GPU and driver that the library knows"
        raise ConfigError(
            explain(
                got=f"{options.backend} {trt.__version__} does not start ({journal.describe_failure()})",
                need=need,
                hint="nvidia-smi",
            )
        ) from error
    # Needed up to TensorRT 10, without meaning since 11.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, path, network, logger)
    config = builder.create_builder_config()
    monitor = build_monitor(trt, journal)
    config.progress_monitor = monitor
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    _add_profile(path, builder, config, profile, journal)
    cache = _take_cache(config, options)
    plan = builder.build_serialized_network(network, config)
    if journal.stopped is not None:
        raise journal.stopped
    if plan is None:
        raise ExportError(_explain_failure(path, network, journal, options))
    if cache is not None and options.timing_cache is not None:
        _write(Path(options.timing_cache), config.get_timing_cache().serialize())
    return plan


def _parse(trt: Any, path: Path, network: Any, logger: Any) -> None:
    """Fill ``network`` with the graph's nodes; ExportError names each that the parser refuses."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(path)):
        return
    said = []
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        place = f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): " if error.node() >= 0 else ""
        said.append(f"{place}{' '.join(error.desc().split())}"[:300])
    shown = "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")
    raise ExportError(
        explain(
            got=f"{path} was refused by the parser of {trt.__name__} {trt.__version__}: {shown or 'no reason given'}",
            need="operators that it knows",
            hint="replace what is named here in the net's forward, or a bundle of engine onnx",
        )
    )


def _add_profile(path: Path, builder: Any, config: Any, shapes: Mapping[str, Any], journal: Journal) -> None:
    profile = builder.create_optimization_profile()
    for name, (smallest, best, largest) in shapes.items():
        profile.set_shape(name, smallest, best, largest)
    if config.add_optimization_profile(profile) < 0:
        raise ConfigError(
            explain(
                got=f"{path}: a profile that the library refuses ({journal.describe_failure()})",
                need="smallest <= best <= largest in every axis",
                hint="trt.height=[32,512,1024]",
            )
        )


def _take_cache(config: Any, options: TensorrtOptions) -> Any:
    """The timing cache of a build, with what an earlier one found out; None where none was asked for."""
    if options.timing_cache is None:
        return None
    path = Path(options.timing_cache)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise ConfigError(
            explain(
                got=f"trt.timing_cache={path} is of another GPU or version",
                need="a file of its own for each",
                hint="another name, or remove it",
            )
        )
    return cache


def _explain_failure(path: Path, network: Any, journal: Journal, options: TensorrtOptions) -> str:
    """Which layer the library could not build, where its words name one."""
    why = journal.describe_failure()
    layers = [network.get_layer(number).name for number in range(network.num_layers)]
    named = sorted((name for name in layers if name and name in why), key=len)
    place = f"layer {named[-1]!r}: " if named else ""
    return explain(
        got=f"{path} was not built by {options.backend}: {place}{why}",
        need="layers that it has kernels for, at the sizes of the profile",
        hint="other trt.height and trt.width, or a bundle of engine onnx",
    )


def _write(path: Path, content: Any) -> None:
    """Put a file in its place when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(f"{path}.part")
    try:
        with part.open("wb") as stream:
            stream.write(memoryview(content))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
