#pragma once

#include <string>
#include <vector>

#include "cellvision/manifest.hpp"
#include "graphs/graph_runner.hpp"

namespace cellvision {

/// Throws Error, expected beside found, unless a graph of maps and its manifest describe the same inputs and outputs.
void check_map_graph(const GraphRunner& graph, const Manifest& manifest);

/// The same for a whole graph of detections.
void check_detection_graph(const GraphRunner& graph, const Manifest& manifest);

/// The same for a trunk and its masks; returns the names of the pyramid maps that go from one to the other.
[[nodiscard]] std::vector<std::string> check_parted_graphs(const GraphRunner& trunk, const GraphRunner& masks,
                                                           const Manifest& manifest);

}  // namespace cellvision
