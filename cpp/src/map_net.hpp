#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cellvision/manifest.hpp"
#include "graph_runner.hpp"

namespace cellvision {

/// What the graph says about one window of an image.
struct Maps {
    std::vector<Tensor> tensors;                     ///< hold the numbers
    std::span<const float> probabilities;            ///< (K, h, w) in 0..1, background first
    std::optional<std::span<const float>> distance;  ///< (h, w) in 0..1; nothing from a graph without that output
};

/// A graph that says of each pixel what it is.
class MapNet {
public:
    /// Throws Error unless graph and manifest fit.
    MapNet(const Manifest& manifest, std::unique_ptr<GraphRunner> graph);

    /// @param input (C, height, width) counts of the manifest's input_dtype.
    [[nodiscard]] Maps run(std::span<const std::byte> input, int height, int width) const;

private:
    const Manifest& manifest_;
    std::unique_ptr<GraphRunner> graph_;
};

/// The graph's input "image" of one window.
[[nodiscard]] Tensor to_image_tensor(const Manifest& manifest, std::span<const std::byte> input, int height, int width);

/// The outputs of a graph; Error where it fails. `what` says in error texts what it ran on, e.g. "64x64 px".
[[nodiscard]] std::vector<Tensor> run_graph(GraphRunner& graph, std::span<const Tensor> feeds,
                                            std::span<const std::string> wanted, const std::string& what);

/// Throws Error unless a result has this shape and its numbers are finite.
void check_result(const GraphRunner& graph, const Tensor& result, const std::vector<std::int64_t>& shape);

}  // namespace cellvision
