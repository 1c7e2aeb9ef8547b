"""A report as one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path

from cellvision.report.lines import ABOUT_FACTORS, list_lines
from cellvision.report.record import CompressionReport
from cellvision.report.table import describe_findings

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th, tr.begins th, tr.begins td { border-top: 2px solid #999; }
tbody th { font-weight: normal; }
img { max-width: 100%; }
pre { background: #f4f4f4; padding: 0.7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.missed { color: #b00020; font-weight: bold; } .kept { color: #22702f; }
.wide { overflow-x: auto; }
"""


def write_page(report: CompressionReport, pictures: Mapping[str, Path], path: Path) -> None:
    """Write the page: table, findings, pictures, what it was measured with and how to do it again.

    Args:
        report: any.
        pictures: PNG files by what they show.
        path: of the page.
    """
    title = f"Compression of {report.base.model}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        *_list_findings(report),
        f'<div class="wide">{_draw_table(report)}</div>',
        f"<p>Accuracy is that of the bundles on {report.fields} held-out fields. In brackets: against the uncompressed"
        " net; points are won (+) or lost (-), also where less is better. Times are medians (p50) and 95 % bounds"
        f" (p95) of runs in which all nets took turns, of {report.size[0]} x {report.size[1]} px, {report.runs} runs"
        f" each. {ABOUT_FACTORS} Memory is that of a process that opens the net and runs one image.</p>",
        *(_draw_picture(words, picture) for words, picture in pictures.items()),
        *_list_origin(report),
    ]
    body = "\n".join(parts)
    path.write_text(
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _list_findings(report: CompressionReport) -> list[str]:
    first, *rest = describe_findings(report)
    kind = "missed" if report.fault else "kept"
    return [f'<p class="{kind}">{escape(first)}</p>', *(f"<p>{escape(text)}</p>" for text in rest)]


def _draw_table(report: CompressionReport) -> str:
    head = "".join(f"<th>{escape(row.name)}</th>" for row in report.rows)
    begins = ' class="begins"'
    lines = [
        f"<tr{begins * line.begins}><th>{escape(line.label)}</th>"
        + "".join(f"<td>{escape(value)}</td>" for value in line.values)
        + "</tr>"
        for line in list_lines(report)
    ]
    return f"<table>\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>"


def _draw_picture(words: str, picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    return f'<h2>{escape(words)}</h2>\n<img alt="{escape(words)}" src="data:image/png;base64,{data}" />'


def _list_origin(report: CompressionReport) -> list[str]:
    rows = "\n".join(
        f"{row.name}: {row.checkpoint} ({', '.join(row.steps) or 'uncompressed'}), SHA-256 {row.checkpoint_sha256}"
        for row in report.rows
    )
    facts = {
        "made": report.created,
        "machine": ", ".join(f"{key} {value}" for key, value in report.machine.items()),
        "versions": ", ".join(f"{key} {value}" for key, value in report.versions.items()),
        "code": ", ".join(f"{key} {value}" for key, value in report.git.items()) or "not in a checkout",
    }
    listed = "".join(f"<li>{escape(key)}: {escape(value)}</li>" for key, value in facts.items())
    return [
        "<h2>Again</h2>",
        f"<pre>{escape(report.command)}</pre>",
        f"<ul>{listed}</ul>",
        "<h2>Checkpoints</h2>",
        f"<pre>{escape(rows)}</pre>",
    ]
