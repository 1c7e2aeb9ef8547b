# OrtHeaders_INCLUDE_DIR: the folder with ONNX Runtime's C++ header. Only headers: see src/ort_library.hpp.
find_path(OrtHeaders_INCLUDE_DIR onnxruntime_cxx_api.h HINTS ${ORT_INCLUDE_DIR}
          PATH_SUFFIXES onnxruntime onnxruntime/core/session include)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OrtHeaders REQUIRED_VARS OrtHeaders_INCLUDE_DIR REASON_FAILURE_MESSAGE
  "need the headers of ONNX Runtime 1.21 or newer, try: -DORT_INCLUDE_DIR=DIR of a release archive, or cpp/fetch_dependencies.sh on Debian")
mark_as_advanced(OrtHeaders_INCLUDE_DIR)
