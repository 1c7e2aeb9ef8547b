"""A report of made-up numbers, for what only reads it."""

from cellvision.metrics.accuracy import choose_headlines
from cellvision.metrics.cost.timing import Latency
from cellvision.report.record import CompressionReport, ReportRow, Timing


def build_timing(threads, batch, p50_ms, ratio):
    latency = Latency(
        runs=15, p50_ms=p50_ms, p95_ms=1.1 * p50_ms, lowest_ms=0.95 * p50_ms, images_per_s=1e3 * batch / p50_ms,
        mpx_per_s=batch * 0.065 / p50_ms, ratio=ratio,
    )  # fmt: skip
    wobble = [1 + 0.01 * ((7 * at) % 5) for at in range(15)]
    times_ms = tuple(p50_ms * each for each in wobble)
    return Timing(threads=threads, batch=batch, latency=latency, times_ms=times_ms)


def build_row(name, *, score, ms, size, base_ms=40.0, role="step", before=None, steps=(), precision="fp32", digest="0"):
    return ReportRow(
        name=name, role=role, before=before, checkpoint=f"run/checkpoints/{name}.ckpt", checkpoint_sha256=digest * 64,
        bundle=name, model="unet", steps=tuple(steps), precision=precision, parameters=int(size / 4),
        macs=int(3e9 * ms / base_ms), size_bytes=size, cells=120, peak_mib=100 + size / 1e6,
        accuracy={"pixel/miou": score} if score is not None else {},
        timings=(
            build_timing(1, 1, ms, ms / base_ms),
            build_timing(2, 1, ms / 1.8, ms / base_ms),
            build_timing(2, 4, 4 * ms / 2, ms / base_ms),
        ),
    )  # fmt: skip


def build_rows():
    return (
        build_row("base", score=0.912, ms=40.0, size=7_900_000),
        build_row("prune", score=0.899, ms=20.5, size=3_600_000, before="base", steps=["prune"]),
        build_row("distill", score=0.907, ms=20.4, size=3_600_000, before="prune", steps=["prune", "distill"]),
        build_row("quantize", score=0.906, ms=8.0, size=950_000, before="distill", precision="int8"),
        build_row("ptq", score=0.880, ms=15.5, size=2_050_000, before="base", role="static", precision="int8"),
        build_row("scratch", score=0.893, ms=20.1, size=3_900_000, before="distill", role="scratch"),
    )


def build_report(rows=None, **changes):
    given = {
        "rows": build_rows() if rows is None else tuple(rows),
        "headlines": choose_headlines("semantic", ("background", "cell")),
        "tolerance_points": 1.0,
        "fields": 20,
        "size": (256, 256),
        "threads": (1, 2),
        "batch": 4,
        "runs": 15,
        "command": "python compress.py ckpt='a <b>.ckpt' & more",
        "created": "2026-01-01T00:00:00+00:00",
        "machine": {"processor": "A $mall$ Processor @ 2 GHz", "cores": 2},
        "versions": {"torch": "2.15.0"},
        "git": {"commit": "abc", "changed": False},
    }
    return CompressionReport(**{**given, **changes})
