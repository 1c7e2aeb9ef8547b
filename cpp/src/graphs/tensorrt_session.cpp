// Runs TensorRT engines (libnvinfer 10 or newer). Built only with -DCELLVISION_WITH_TENSORRT=ON, and kept small: it
// compiles with TensorRT's headers but has never been run, for the tests have neither TensorRT's libraries nor a GPU.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <charconv>
#include <mutex>
#include <stdexcept>

#include "bundle/mapped_file.hpp"
#include "cellvision/error.hpp"
#include "graphs/engine_sidecar.hpp"
#include "graphs/session.hpp"

namespace cellvision {
namespace {

void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
    }
}

/// Keeps the last error, for TensorRT gives no other reason.
class Log final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* text) noexcept override {
        if (severity <= Severity::kERROR) {
            const std::lock_guard lock(mutex_);
            last_ = text;
        }
    }

    std::string last() {
        const std::lock_guard lock(mutex_);
        return last_;
    }

private:
    std::mutex mutex_;
    std::string last_;
};

struct FreeOnGpu {
    void operator()(void* place) const noexcept { cudaFree(place); }
};
using GpuBuffer = std::unique_ptr<void, FreeOnGpu>;

GpuBuffer allocate(std::size_t bytes) {
    void* place = nullptr;
    check(cudaMalloc(&place, std::max<std::size_t>(bytes, 1)), "memory on the GPU");
    return GpuBuffer(place);
}

std::pair<Element, std::size_t> describe(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT: return {Element::float32, 4};
        case nvinfer1::DataType::kINT64: return {Element::int64, 8};
        case nvinfer1::DataType::kUINT8: return {Element::uint8, 1};
        case nvinfer1::DataType::kBOOL: return {Element::boolean, 1};
        default: return {Element::other, 4};
    }
}

std::vector<std::int64_t> to_shape(const nvinfer1::Dims& dims) { return {dims.d, dims.d + dims.nbDims}; }

class TensorRtGraph final : public GraphRunner {
public:
    explicit TensorRtGraph(std::filesystem::path path, int device) : path_(std::move(path)), device_(device) {
        check(cudaSetDevice(device_), "the GPU");
        const MappedFile file(path_);
        runtime_.reset(nvinfer1::createInferRuntime(log_));
        engine_.reset(runtime_ ? runtime_->deserializeCudaEngine(file.bytes().data(), file.bytes().size()) : nullptr);
        context_.reset(engine_ ? engine_->createExecutionContext() : nullptr);
        if (!context_) {
            throw std::runtime_error(log_.last());
        }
        for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
            const char* name = engine_->getIOTensorName(i);
            auto& ports = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT ? inputs_ : outputs_;
            const Element element = describe(engine_->getTensorDataType(name)).first;
            ports.push_back({name, element, to_shape(engine_->getTensorShape(name))});
        }
    }

    std::vector<Tensor> run(std::span<const Tensor> feeds, std::span<const std::string> wanted) override {
        const std::lock_guard lock(mutex_);  // one context runs one set of inputs at a time
        check(cudaSetDevice(device_), "the GPU");
        std::vector<GpuBuffer> buffers;
        for (const Tensor& feed : feeds) {
            nvinfer1::Dims dims{};
            dims.nbDims = static_cast<std::int32_t>(feed.shape.size());
            std::copy(feed.shape.begin(), feed.shape.end(), dims.d);
            buffers.push_back(allocate(feed.bytes.size()));
            check(cudaMemcpy(buffers.back().get(), feed.bytes.data(), feed.bytes.size(), cudaMemcpyHostToDevice),
                  "copying to the GPU");
            if (!context_->setInputShape(feed.name.c_str(), dims) ||
                !context_->setTensorAddress(feed.name.c_str(), buffers.back().get())) {
                throw std::runtime_error(log_.last());
            }
        }
        std::vector<std::pair<Tensor, std::shared_ptr<std::vector<std::byte>>>> results;
        const std::size_t first = buffers.size();
        for (const Port& port : outputs_) {
            Tensor tensor{port.name, port.element, to_shape(context_->getTensorShape(port.name.c_str())), {}, nullptr};
            std::size_t bytes = describe(engine_->getTensorDataType(port.name.c_str())).second;
            for (const std::int64_t size : tensor.shape) {
                bytes *= static_cast<std::size_t>(std::max<std::int64_t>(size, 0));
            }
            buffers.push_back(allocate(bytes));
            context_->setTensorAddress(port.name.c_str(), buffers.back().get());
            results.emplace_back(std::move(tensor), std::make_shared<std::vector<std::byte>>(bytes));
        }
        if (!context_->enqueueV3(nullptr)) {
            throw std::runtime_error(log_.last());
        }
        check(cudaDeviceSynchronize(), "the run");
        std::vector<Tensor> tensors;
        for (const std::string& name : wanted) {
            const auto is_it = [&](const auto& one) { return one.first.name == name; };
            const auto at = std::find_if(results.begin(), results.end(), is_it);
            auto& [tensor, bytes] = *at;  // the signature was checked: every wanted output is there
            check(cudaMemcpy(bytes->data(), buffers[first + static_cast<std::size_t>(at - results.begin())].get(),
                             bytes->size(), cudaMemcpyDeviceToHost),
                  "copying from the GPU");
            tensor.bytes = *bytes;
            tensor.owner = bytes;
            tensors.push_back(tensor);
        }
        return tensors;
    }

    const std::vector<Port>& inputs() const override { return inputs_; }
    const std::vector<Port>& outputs() const override { return outputs_; }
    const std::filesystem::path& path() const override { return path_; }

private:
    std::filesystem::path path_;
    int device_;
    Log log_;
    std::mutex mutex_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::vector<Port> inputs_;
    std::vector<Port> outputs_;
};

int read_device(const Options& options) {
    const auto given = options.provider_options.find("device_id");
    const std::string text = given == options.provider_options.end() ? "0" : given->second;
    int device = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), device);
    if (result.ec != std::errc() || result.ptr != text.data() + text.size() || device < 0) {
        fail(ErrorKind::config, "device_id=" + text, "the number of a GPU, from 0 up",
             "--provider-option device_id=0");
    }
    return device;
}

EngineHost find_host(int device) {
    cudaDeviceProp gpu{};
    if (const cudaError_t status = cudaGetDeviceProperties(&gpu, device); status != cudaSuccess) {
        fail(ErrorKind::config,
             "no GPU of device_id=" + std::to_string(device) + " (" + cudaGetErrorString(status) + ")",
             "an NVIDIA GPU and its driver", "--provider-option device_id=0, or a bundle of engine onnx");
    }
    std::string version;
    for (const std::int32_t part : {getInferLibMajorVersion(), getInferLibMinorVersion(), getInferLibPatchVersion(),
                                    getInferLibBuildVersion()}) {
        version += (version.empty() ? "" : ".") + std::to_string(part);
    }
    return {.library_version = version,
            .gpu = gpu.name,
            .compute_capability = std::to_string(gpu.major) + "." + std::to_string(gpu.minor)};
}

}  // namespace

std::unique_ptr<GraphRunner> open_tensorrt_graph(const std::filesystem::path& file, const Options& options) {
    const int device = read_device(options);
    check_engine_sidecar(file, find_host(device));
    try {
        return std::make_unique<TensorRtGraph>(file, device);
    } catch (const std::exception& error) {
        fail(ErrorKind::bundle, file.string() + " does not load (" + error.what() + ")",
             "an engine built by this release of TensorRT for this kind of GPU", "export.py +trt=fp16 on this machine");
    }
}

}  // namespace cellvision
