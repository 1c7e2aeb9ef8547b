#include "graphs/session.hpp"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <array>
#include <cctype>
#include <map>
#include <unordered_map>

#include "bundle/mapped_file.hpp"
#include "cellvision/error.hpp"
#include "graphs/external_data.hpp"
#include "graphs/ort_library.hpp"
#include "graphs/tensor_pool.hpp"

namespace cellvision {
namespace {

struct ElementFact {
    Element element;
    ONNXTensorElementDataType type;
    const char* text;
    std::size_t bytes;
};

constexpr std::array<ElementFact, 5> elements = {{
    {Element::uint8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, "tensor(uint8)", 1},
    {Element::uint16, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16, "tensor(uint16)", 2},
    {Element::float32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "tensor(float)", 4},
    {Element::int64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, "tensor(int64)", 8},
    {Element::boolean, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, "tensor(bool)", 1},
}};

const ElementFact* find_fact(auto&& is_it) {
    const auto at = std::find_if(elements.begin(), elements.end(), is_it);
    return at == elements.end() ? nullptr : &*at;
}

std::string first_line(const std::exception& error) {
    const std::string text = error.what();
    return text.substr(0, std::min<std::size_t>(text.find('\n'), 300));
}

std::string shorten(const std::string& full_name) {
    constexpr std::string_view suffix = "ExecutionProvider";
    std::string name = full_name.ends_with(suffix) ? full_name.substr(0, full_name.size() - suffix.size()) : full_name;
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    return name;
}

/// ONNX Runtime's name of a provider, e.g. "CUDAExecutionProvider" of "cuda".
std::string find_provider(const std::string& provider) {
    std::map<std::string, std::string> found;
    for (const std::string& full_name : Ort::GetAvailableProviders()) {
        found.emplace(shorten(full_name), full_name);
    }
    if (found.contains(provider)) {
        return found.at(provider);
    }
    std::string known;
    for (const auto& [name, full_name] : found) {
        known.append(known.empty() ? "" : ", ").append(name);
    }
    // What people ask for and the plain library does not have.
    const std::map<std::string, std::string> sources = {{"cuda", "an NVIDIA GPU"},
                                                        {"tensorrt", "an NVIDIA GPU and the libraries of TensorRT"},
                                                        {"openvino", "an Intel processor or GPU"}};
    if (sources.contains(provider)) {
        fail(ErrorKind::config, "provider=" + provider + " with an ONNX Runtime that has only " + known,
             sources.at(provider) + ", and a library of ONNX Runtime that has " + provider,
             "--ort-library FILE of a release for it; or provider=cpu");
    }
    fail(ErrorKind::config, "unknown provider '" + provider + "'", "one of: " + known, "provider=cpu");
}

using Facts = std::map<std::string, std::string>;

/// Makes a provider's options by ONNX Runtime's functions for it, which all have this form, and uses them.
template <typename Raw, typename Create, typename Update, typename Append, typename Release>
void append_with(const Facts& facts, Create create, Update update, Append append, Release release) {
    Raw* raw = nullptr;
    Ort::ThrowOnError(create(&raw));
    const std::unique_ptr<Raw, Release> made(raw, release);
    std::vector<const char*> keys;
    std::vector<const char*> values;
    for (const auto& [key, value] : facts) {
        keys.push_back(key.c_str());
        values.push_back(value.c_str());
    }
    Ort::ThrowOnError(update(made.get(), keys.data(), values.data(), keys.size()));
    append(*made);
}

void append_cuda(Ort::SessionOptions& session, const Facts& facts) {
    const OrtApi& api = Ort::GetApi();
    append_with<OrtCUDAProviderOptionsV2>(
        facts, api.CreateCUDAProviderOptions, api.UpdateCUDAProviderOptions,
        [&](const OrtCUDAProviderOptionsV2& made) { session.AppendExecutionProvider_CUDA_V2(made); },
        api.ReleaseCUDAProviderOptions);
}

void append_tensorrt(Ort::SessionOptions& session, const Facts& facts) {
    const OrtApi& api = Ort::GetApi();
    append_with<OrtTensorRTProviderOptionsV2>(
        facts, api.CreateTensorRTProviderOptions, api.UpdateTensorRTProviderOptions,
        [&](const OrtTensorRTProviderOptionsV2& made) { session.AppendExecutionProvider_TensorRT_V2(made); },
        api.ReleaseTensorRTProviderOptions);
    // What TensorRT cannot do goes to CUDA rather than to the processor.
    append_cuda(session, facts.contains("device_id") ? Facts{{"device_id", facts.at("device_id")}} : Facts{});
}

void append_provider(Ort::SessionOptions& session, const Options& options) {
    const std::string full_name = find_provider(options.provider);
    const Facts& facts = options.provider_options;
    if (options.provider == "cpu") {
        if (!facts.empty()) {
            fail(ErrorKind::config, "provider_options " + facts.begin()->first + " with provider=cpu",
                 "none, for the processor has no such options", "threads, or another provider");
        }
    } else if (options.provider == "cuda") {
        append_cuda(session, facts);
    } else if (options.provider == "tensorrt") {
        append_tensorrt(session, facts);
    } else {
        const std::unordered_map<std::string, std::string> entries(facts.begin(), facts.end());
        if (options.provider == "openvino") {
            session.AppendExecutionProvider_OpenVINO_V2(entries);
        } else {
            session.AppendExecutionProvider(full_name.substr(0, full_name.find("ExecutionProvider")), entries);
        }
    }
}

Ort::SessionOptions to_session_options(const Options& options) {
    Ort::SessionOptions session;
    session.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
    // Between two runs its threads would spin on the cores that the other graph, and splitting, need.
    session.AddConfigEntry("session.force_spinning_stop", "1");
    if (options.provider == "cpu") {
        session.AddConfigEntry("session.use_env_allocators", "1");
        session.DisableMemPattern();  // would ask for the memory of a whole run in one piece, in the second run
    } else if (options.arena == "none") {
        session.DisableCpuMemArena();
    }
    if (options.threads > 0) {
        session.SetIntraOpNumThreads(options.threads);
    }
    append_provider(session, options);
    return session;
}

Port to_port(std::string name, const Ort::TypeInfo& type) {
    const auto tensor = type.GetTensorTypeAndShapeInfo();
    const auto element = tensor.GetElementType();
    const ElementFact* fact = find_fact([&](const ElementFact& one) { return one.type == element; });
    return {std::move(name), fact == nullptr ? Element::other : fact->element, tensor.GetShape()};
}

class OnnxGraph final : public GraphRunner {
public:
    OnnxGraph(std::filesystem::path path, Ort::Session session, const Options& options)
        : path_(std::move(path)), session_(std::move(session)) {
        is_emptied_ = options.provider == "cpu" && options.arena != "keep";
        if (options.provider != "cpu" && options.arena == "shrink") {
            const bool is_gpu = options.provider == "cuda" || options.provider == "tensorrt";
            const auto device = options.provider_options.find("device_id");
            const std::string number = device == options.provider_options.end() ? "0" : device->second;
            how_.AddConfigEntry("memory.enable_memory_arena_shrinkage",
                                (is_gpu ? "cpu:0;gpu:" + number : std::string("cpu:0")).c_str());
        }
        const Ort::AllocatorWithDefaultOptions allocator;
        for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
            inputs_.push_back(
                to_port(session_.GetInputNameAllocated(i, allocator).get(), session_.GetInputTypeInfo(i)));
        }
        for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
            outputs_.push_back(
                to_port(session_.GetOutputNameAllocated(i, allocator).get(), session_.GetOutputTypeInfo(i)));
        }
    }

    std::vector<Tensor> run(std::span<const Tensor> feeds, std::span<const std::string> wanted) override {
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
        std::vector<Ort::Value> values;
        std::vector<const char*> feed_names;
        std::vector<const char*> wanted_names;
        for (const Tensor& feed : feeds) {
            const ElementFact* fact = find_fact([&](const ElementFact& one) { return one.element == feed.element; });
            // ONNX Runtime does not write to what it is fed.
            values.push_back(Ort::Value::CreateTensor(memory, const_cast<std::byte*>(feed.bytes.data()),
                                                      feed.bytes.size(), feed.shape.data(), feed.shape.size(),
                                                      fact->type));
            feed_names.push_back(feed.name.c_str());
        }
        for (const std::string& name : wanted) {
            wanted_names.push_back(name.c_str());
        }
        auto results = session_.Run(how_, feed_names.data(), values.data(), values.size(),
                                    wanted_names.data(), wanted_names.size());
        if (is_emptied_) {
            tensor_pool().drop_free();
        }
        std::vector<Tensor> tensors;
        for (std::size_t i = 0; i < results.size(); ++i) {
            tensors.push_back(to_tensor(wanted[i], std::move(results[i])));
        }
        return tensors;
    }

    const std::vector<Port>& inputs() const override { return inputs_; }
    const std::vector<Port>& outputs() const override { return outputs_; }
    const std::filesystem::path& path() const override { return path_; }

private:
    static Tensor to_tensor(const std::string& name, Ort::Value result) {
        auto owner = std::make_shared<Ort::Value>(std::move(result));
        const auto info = owner->GetTensorTypeAndShapeInfo();
        const auto type = info.GetElementType();
        const ElementFact* fact = find_fact([&](const ElementFact& one) { return one.type == type; });
        Tensor tensor{.name = name,
                      .element = fact == nullptr ? Element::other : fact->element,
                      .shape = info.GetShape(),
                      .bytes = {},
                      .owner = nullptr};
        const std::size_t bytes = fact == nullptr ? 0 : info.GetElementCount() * fact->bytes;
        tensor.bytes = {static_cast<const std::byte*>(owner->GetTensorRawData()), bytes};
        tensor.owner = std::move(owner);
        return tensor;
    }

    std::filesystem::path path_;
    Ort::Session session_;
    bool is_emptied_ = false;  // whether the pool gives back after each run what is free
    Ort::RunOptions how_;      // only read once it is made, so runs of several threads share it
    std::vector<Port> inputs_;
    std::vector<Port> outputs_;
};

}  // namespace

std::string to_text(Element element) {
    const ElementFact* fact = find_fact([&](const ElementFact& one) { return one.element == element; });
    return fact == nullptr ? "tensor(another type)" : fact->text;
}

Element to_element(DType dtype) {
    switch (dtype) {
        case DType::uint8: return Element::uint8;
        case DType::uint16: return Element::uint16;
        case DType::float32: return Element::float32;
    }
    return Element::other;
}

std::unique_ptr<GraphRunner> open_onnx_graph(const std::filesystem::path& file, const Options& options) {
    load_ort(options.ort_library);
    if (has_external_data(MappedFile(file).bytes())) {
        fail(ErrorKind::bundle, file.string() + " keeps weights in other files", "one file that holds everything",
             "export the bundle again");
    }
    try {
        const Ort::SessionOptions session = to_session_options(options);
        Ort::Session started(ort_environment(), file.c_str(), session);
        auto opened = std::make_unique<OnnxGraph>(file, std::move(started), options);
#ifdef __GLIBC__
        malloc_trim(0);  // opening takes each weight several times over
#endif
        return opened;
    } catch (const Ort::Exception& error) {
        if (options.provider == "cpu") {
            fail(ErrorKind::bundle, file.string() + " does not load (" + first_line(error) + ")",
                 "an ONNX graph that ONNX Runtime " + find_ort_version() + " can run",
                 "a newer ONNX Runtime, or export the bundle again");
        }
        fail(ErrorKind::config,
             file.string() + " does not load with provider=" + options.provider + " (" + first_line(error) + ")",
             "its driver and libraries, options that it knows, and a graph that it can run",
             "provider=cpu, which tells whether it is the graph");
    }
}

std::unique_ptr<GraphRunner> open_graph(const std::filesystem::path& bundle_dir, const Graph& graph,
                                        const Options& options) {
    if (graph.engine == "onnx") {
        return open_onnx_graph(bundle_dir / graph.file, options);
    }
#ifdef CELLVISION_WITH_TENSORRT
    if (graph.engine == "tensorrt") {
        return open_tensorrt_graph(bundle_dir / graph.file, options);
    }
#endif
    fail(ErrorKind::bundle, graph.file + " is made for the engine " + graph.engine,
         "an engine that this build has: onnx", "export an ONNX bundle, or build with -DCELLVISION_WITH_TENSORRT=ON");
}

}  // namespace cellvision
