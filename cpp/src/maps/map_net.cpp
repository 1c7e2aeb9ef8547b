#include "maps/map_net.hpp"

#include <string>
#include <utility>

#include "graphs/signature.hpp"

namespace cellvision {

MapNet::MapNet(const Manifest& manifest, std::unique_ptr<GraphRunner> graph)
    : manifest_(manifest), graph_(std::move(graph)) {
    check_map_graph(*graph_, manifest_);
}

std::vector<Maps> MapNet::run(const Windows& windows) const {
    const std::vector<Tensor> feeds = {to_image_tensor(manifest_, windows)};
    const auto results = run_graph(*graph_, feeds, manifest_.outputs, describe(windows));
    const auto pixels = static_cast<std::size_t>(windows.height) * static_cast<std::size_t>(windows.width);
    std::vector<Maps> all(static_cast<std::size_t>(windows.count));
    for (const Tensor& result : results) {
        const bool is_distance = result.name == "distance";
        const std::size_t planes = is_distance ? 1 : manifest_.classes.size();
        check_result(*graph_, result,
                     {windows.count, static_cast<std::int64_t>(planes), windows.height, windows.width});
        for (std::size_t at = 0; at < all.size(); ++at) {
            all[at].tensors = results;
            const auto of_window = result.values<float>().subspan(at * planes * pixels, planes * pixels);
            if (is_distance) {
                all[at].distance = of_window;
            } else {
                all[at].probabilities = of_window;
            }
        }
    }
    return all;
}

int MapNet::probe(std::span<const std::byte> input, int edge) const {
    static_cast<void>(run({.counts = input, .height = edge, .width = edge}));
    return 0;
}

}  // namespace cellvision
