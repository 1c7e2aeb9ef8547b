#pragma once

#include <cstddef>
#include <span>

namespace cellvision {

/// Whether any tensor of an ONNX model names another file, found by walking its protobuf bytes.
///
/// ONNX Runtime would follow such a name, which can point anywhere on the machine; a bundle's hash covers one file.
/// Throws Error where the bytes are no protobuf message.
[[nodiscard]] bool has_external_data(std::span<const std::byte> model);

}  // namespace cellvision
