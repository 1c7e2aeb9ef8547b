#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cellvision/manifest.hpp"
#include "graphs/checked_run.hpp"
#include "graphs/graph_runner.hpp"

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

    /// The maps of each window.
    [[nodiscard]] std::vector<Maps> run(const Windows& windows) const;

    /// Runs the graph on an image of this edge, to see what it takes; 0, for it finds pixels, not cells.
    int probe(std::span<const std::byte> input, int edge) const;

private:
    const Manifest& manifest_;
    std::unique_ptr<GraphRunner> graph_;
};

}  // namespace cellvision
