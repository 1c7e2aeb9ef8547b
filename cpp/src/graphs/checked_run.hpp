#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cellvision/manifest.hpp"
#include "graphs/graph_runner.hpp"

namespace cellvision {

/// Windows of one size that go through a graph at once.
struct Windows {
    std::span<const std::byte> counts;  ///< (count, C, height, width) of the manifest's input_dtype
    int count = 1;
    int height = 0;  ///< px
    int width = 0;   ///< px
};

/// The graph's input "image".
[[nodiscard]] Tensor to_image_tensor(const Manifest& manifest, const Windows& windows);

/// "64x64 px", for error texts.
[[nodiscard]] std::string describe(const Windows& windows);

/// The outputs of a graph; Error where it fails. `what` says in error texts what it ran on, e.g. "64x64 px".
[[nodiscard]] std::vector<Tensor> run_graph(GraphRunner& graph, std::span<const Tensor> feeds,
                                            std::span<const std::string> wanted, const std::string& what);

/// Throws Error unless a result has this shape and its numbers are finite.
void check_result(const GraphRunner& graph, const Tensor& result, const std::vector<std::int64_t>& shape);

}  // namespace cellvision
