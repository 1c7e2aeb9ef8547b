#include "graphs/checked_run.hpp"

#include <algorithm>
#include <cmath>

#include "cellvision/error.hpp"

namespace cellvision {
namespace {

std::string to_text(const std::vector<std::int64_t>& shape) {
    std::string text = "(";
    for (const std::int64_t size : shape) {
        text.append(text.size() > 1 ? ", " : "").append(std::to_string(size));
    }
    return text + ")";
}

}  // namespace

Tensor to_image_tensor(const Manifest& manifest, const Windows& windows) {
    const auto channels = static_cast<std::int64_t>(manifest.channels.size());
    return {.name = "image",
            .element = to_element(manifest.input_dtype),
            .shape = {windows.count, channels, windows.height, windows.width},
            .bytes = windows.counts,
            .owner = nullptr};
}

std::string describe(const Windows& windows) {
    return std::to_string(windows.height) + "x" + std::to_string(windows.width) + " px";
}

std::vector<Tensor> run_graph(GraphRunner& graph, std::span<const Tensor> feeds, std::span<const std::string> wanted,
                              const std::string& what) {
    try {
        return graph.run(feeds, wanted);
    } catch (const std::exception& error) {
        const std::string text = error.what();
        if (text.find("std::bad_alloc") != std::string::npos) {  // of the pool, see ort_library.cpp
            fail(ErrorKind::bundle, graph.path().filename().string() + " takes more memory than there is for " + what,
                 "less, or more memory", "a smaller tile_px");
        }
        const std::string line = text.substr(0, std::min<std::size_t>(text.find('\n'), 300));
        fail(ErrorKind::bundle, graph.path().filename().string() + " failed on " + what + " (" + line + ")",
             "a graph that runs at any size within the memory at hand",
             "a smaller tile_px, or export the bundle again");
    }
}

void check_result(const GraphRunner& graph, const Tensor& result, const std::vector<std::int64_t>& shape) {
    const std::string place = graph.path().filename().string() + ": output '" + result.name + "'";
    if (result.shape != shape) {
        fail(ErrorKind::bundle, place + " has shape " + to_text(result.shape), to_text(shape),
             "export the bundle again");
    }
    if (result.element == Element::float32) {
        const auto values = result.values<float>();
        if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
            fail(ErrorKind::bundle, place + " holds NaN or infinite values", "finite numbers",
                 "check the image for extreme values, or export the bundle again");
        }
    }
}

}  // namespace cellvision
