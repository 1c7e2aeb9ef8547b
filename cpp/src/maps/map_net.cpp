#include "maps/map_net.hpp"

#include <string>
#include <utility>

#include "graphs/checked_run.hpp"
#include "graphs/signature.hpp"

namespace cellvision {

MapNet::MapNet(const Manifest& manifest, std::unique_ptr<GraphRunner> graph)
    : manifest_(manifest), graph_(std::move(graph)) {
    check_map_graph(*graph_, manifest_);
}

Maps MapNet::run(std::span<const std::byte> input, int height, int width) const {
    const std::vector<Tensor> feeds = {to_image_tensor(manifest_, input, height, width)};
    const std::string size = std::to_string(height) + "x" + std::to_string(width) + " px";
    Maps maps;
    maps.tensors = run_graph(*graph_, feeds, manifest_.outputs, size);
    for (const Tensor& result : maps.tensors) {
        const bool is_distance = result.name == "distance";
        const std::int64_t planes = is_distance ? 1 : static_cast<std::int64_t>(manifest_.classes.size());
        check_result(*graph_, result, {1, planes, height, width});
        if (is_distance) {
            maps.distance = result.values<float>();
        } else {
            maps.probabilities = result.values<float>();
        }
    }
    return maps;
}

int MapNet::probe(std::span<const std::byte> input, int edge) const {
    static_cast<void>(run(input, edge, edge));
    return 0;
}

}  // namespace cellvision
