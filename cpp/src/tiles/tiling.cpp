#include "tiles/tiling.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "cellvision/error.hpp"

namespace cellvision {

std::vector<Span> plan_spans(int length, int tile_px, int overlap_px) {
    const int beyond = length - 2 * overlap_px;
    const int count = beyond <= 0 ? 1 : (beyond + tile_px - 1) / tile_px;
    std::vector<Span> spans;
    spans.reserve(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) {
        const int begin = i * tile_px;
        spans.push_back({.start = i > 0 ? begin + overlap_px : 0,
                         .stop = i < count - 1 ? begin + tile_px + overlap_px : length,
                         .window_start = begin,
                         .window_stop = std::min(length, begin + tile_px + 2 * overlap_px)});
    }
    return spans;
}

std::vector<std::span<const Tile>> cut_batches(std::span<const Tile> tiles, int most) {
    std::vector<std::span<const Tile>> batches;
    for (std::size_t first = 0, next = 0; first < tiles.size(); first = next) {
        const auto belongs = [&](const Tile& tile) {
            return tile.rows == tiles[first].rows &&
                   tile.columns.window_size() == tiles[first].columns.window_size();
        };
        for (next = first + 1; next < tiles.size() && next - first < static_cast<std::size_t>(most); ++next) {
            if (!belongs(tiles[next])) {
                break;
            }
        }
        batches.push_back(tiles.subspan(first, next - first));
    }
    return batches;
}

double Costs::compute_total(int height, int width, int tile_px, int overlap_px) const {
    const double rows = std::min(height, tile_px + 2 * overlap_px);
    const double columns = std::min(width, tile_px + 2 * overlap_px);
    const double cells = std::min(most_cells, rows * columns / dense_cell_px);
    const int at_once = std::min(windows, (width + tile_px - 1) / tile_px);
    return fixed + at_once * (rows * columns * per_window_px + cells * per_cell);
}

int choose_tile_px(int height, int width, const TileLimits& limits, const Costs& costs, int memory_mib) {
    double total_mib = 0.0;
    int tile_px = limits.largest_px;
    for (const int last = std::min(limits.smallest_px, tile_px);; tile_px -= limits.stride) {
        total_mib = std::ceil(costs.compute_total(height, width, tile_px, limits.overlap_px) / (1024.0 * 1024.0));
        if (total_mib <= memory_mib) {
            return tile_px;
        }
        if (tile_px - limits.stride < last) {
            break;
        }
    }
    const std::string total = std::to_string(static_cast<long long>(total_mib));
    fail(ErrorKind::config,
         "an image of " + std::to_string(height) + "x" + std::to_string(width) + " px takes " + total +
             " MiB in tiles of " + std::to_string(tile_px) + " px",
         "at most memory_mib=" + std::to_string(memory_mib), "memory_mib=" + total + ", or a smaller tile_px");
}

int round_up(int value, int multiple) {
    return std::max(1, (value + multiple - 1) / multiple) * multiple;
}

}  // namespace cellvision
