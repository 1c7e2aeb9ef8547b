"""Whether an ONNX file stands alone, found by walking its protobuf bytes: the runtime has no onnx package."""

from __future__ import annotations

from collections.abc import Iterator

from cellvision.errors import BundleError, explain

# Field numbers of onnx.proto: from each kind of message, which fields lead on towards tensors.
_PATHS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def has_external_data(graph: bytes) -> bool:
    """True where any tensor of an ONNX model names another file.

    ONNX Runtime would follow such a name, which can point anywhere on the machine; a bundle's hash covers one file.

    Raises:
        BundleError: the bytes are not a protobuf message.

    Example:
        >>> has_external_data(b"")
        False
    """
    try:
        return _search(memoryview(graph), "model")
    except (IndexError, ValueError, RecursionError) as error:
        raise BundleError(
            explain(got="the graph file is cut short or not ONNX", need="an ONNX file", hint="export the bundle again")
        ) from error


def _search(message: memoryview, kind: str) -> bool:
    for number, value in _iterate_fields(message):
        if kind == "tensor":
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                return True
        elif number in _PATHS[kind] and isinstance(value, memoryview) and _search(value, _PATHS[kind][number]):
            return True
    return False


def _iterate_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of one message; fixed-width values come as 0, nothing here needs them."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _read_varint(message, at)
            yield key >> 3, value
        elif wire == 2:
            length, at = _read_varint(message, at)
            if at + length > len(message):
                raise ValueError("length beyond the end")
            yield key >> 3, message[at : at + length]
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("number too long")
