#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "cellvision/manifest.hpp"
#include "cellvision/predictor.hpp"
#include "graphs/graph_runner.hpp"

namespace cellvision {

/// A graph of a bundle, ready to run on the provider that `options` ask for, by the engine that the graph is made for.
[[nodiscard]] std::unique_ptr<GraphRunner> open_graph(const std::filesystem::path& bundle_dir, const Graph& graph,
                                                      const Options& options);

/// An ONNX file, run by ONNX Runtime.
[[nodiscard]] std::unique_ptr<GraphRunner> open_onnx_graph(const std::filesystem::path& file, const Options& options);

/// A TensorRT engine file; only where the library was built with CELLVISION_WITH_TENSORRT.
[[nodiscard]] std::unique_ptr<GraphRunner> open_tensorrt_graph(const std::filesystem::path& file,
                                                               const Options& options);

}  // namespace cellvision
