#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <filesystem>
#include <string>

namespace cellvision {

/// Loads ONNX Runtime once per process, from `library` or else $CELLVISION_ORT_LIBRARY or else the system's.
///
/// By dlopen rather than by linking: its symbols carry the exact release, so that a linked program refuses every other.
/// Throws Error where there is none, where it is too old, or where another one has been loaded already.
void load_ort(const std::filesystem::path& library);

/// Release of the library that is loaded, e.g. "1.31.1"; "" where none is.
[[nodiscard]] std::string find_ort_version();

/// The process's environment; `load_ort` first.
[[nodiscard]] Ort::Env& ort_environment();

}  // namespace cellvision
