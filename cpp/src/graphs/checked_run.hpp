#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cellvision/manifest.hpp"
#include "graphs/graph_runner.hpp"

namespace cellvision {

/// The graph's input "image" of one window.
[[nodiscard]] Tensor to_image_tensor(const Manifest& manifest, std::span<const std::byte> input, int height, int width);

/// The outputs of a graph; Error where it fails. `what` says in error texts what it ran on, e.g. "64x64 px".
[[nodiscard]] std::vector<Tensor> run_graph(GraphRunner& graph, std::span<const Tensor> feeds,
                                            std::span<const std::string> wanted, const std::string& what);

/// Throws Error unless a result has this shape and its numbers are finite.
void check_result(const GraphRunner& graph, const Tensor& result, const std::vector<std::int64_t>& shape);

}  // namespace cellvision
