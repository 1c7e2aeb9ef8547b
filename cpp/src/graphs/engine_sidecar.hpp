#pragma once

#include <filesystem>
#include <string>

namespace cellvision {

/// What is to run an engine of TensorRT here.
struct EngineHost {
    std::string library_version;     ///< of TensorRT, e.g. "10.13.0.35"
    std::string gpu;                 ///< name, as CUDA tells it
    std::string compute_capability;  ///< e.g. "9.0"
};

/// Throws Error unless the sidecar beside an engine (graph.engine.json) tells of this file, library, version and GPU,
/// as Python's check_engine_sidecar.
void check_engine_sidecar(const std::filesystem::path& engine, const EngineHost& host);

}  // namespace cellvision
