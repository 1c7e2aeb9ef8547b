# TensorRT_INCLUDE_DIRS and TensorRT_LIBRARIES: TensorRT's runtime (libnvinfer) and the CUDA runtime it works with.
find_package(CUDAToolkit QUIET)
find_path(TensorRT_INCLUDE_DIR NvInferRuntime.h HINTS ${TENSORRT_ROOT} ENV TENSORRT_ROOT PATH_SUFFIXES include)
find_library(TensorRT_LIBRARY nvinfer HINTS ${TENSORRT_ROOT} ENV TENSORRT_ROOT PATH_SUFFIXES lib lib64)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT REQUIRED_VARS TensorRT_INCLUDE_DIR TensorRT_LIBRARY CUDAToolkit_FOUND
  REASON_FAILURE_MESSAGE "need TensorRT 10 or newer and the CUDA toolkit, try: -DTENSORRT_ROOT=DIR")
set(TensorRT_INCLUDE_DIRS ${TensorRT_INCLUDE_DIR} ${CUDAToolkit_INCLUDE_DIRS})
set(TensorRT_LIBRARIES ${TensorRT_LIBRARY} CUDA::cudart)
mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_LIBRARY)
