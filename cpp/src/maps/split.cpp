#include "maps/split.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cellvision/error.hpp"
#include "maps/watershed.hpp"

namespace cellvision {
namespace {

std::vector<std::int64_t> count_pixels(const LabelImage& labels, std::int32_t count) {
    std::vector<std::int64_t> area(static_cast<std::size_t>(count) + 1, 0);
    for (const std::int32_t label : labels.data) {
        ++area[static_cast<std::size_t>(label)];
    }
    return area;
}

void flood_from_cores(std::span<const float> distance, std::span<const std::uint8_t> foreground,
                      const Splitting& splitting, LabelImage& cells) {
    const auto threshold = static_cast<float>(splitting.seed_threshold);
    std::vector<std::uint8_t> region(foreground.size());
    for (std::size_t at = 0; at < region.size(); ++at) {
        region[at] = foreground[at] != 0 && distance[at] >= threshold ? 1 : 0;
    }
    const std::int32_t count = label_regions(region, cells);
    const auto area = count_pixels(cells, count);
    for (std::int32_t& label : cells.data) {
        label = area[static_cast<std::size_t>(label)] < splitting.min_seed_px ? 0 : label;
    }
    flood(distance, foreground, cells);
    for (std::size_t at = 0; at < region.size(); ++at) {
        region[at] = foreground[at] != 0 && cells.data[at] == 0 ? 1 : 0;
    }
    LabelImage alone(cells.height, cells.width);
    if (label_regions(region, alone) > 0) {
        std::transform(cells.data.begin(), cells.data.end(), alone.data.begin(), cells.data.begin(),
                       [count](std::int32_t cell, std::int32_t lone) { return lone > 0 ? lone + count : cell; });
    }
}

/// The same regions without the small ones, renumbered 1..N in raster order.
void keep_large(LabelImage& cells, int min_area_px) {
    const std::int32_t largest = cells.data.empty() ? 0 : *std::max_element(cells.data.begin(), cells.data.end());
    const auto area = count_pixels(cells, largest);
    std::vector<std::int32_t> number(area.size(), 0);
    std::int32_t count = 0;
    for (std::int32_t& label : cells.data) {
        const auto at = static_cast<std::size_t>(label);
        if (label > 0 && number[at] == 0 && area[at] >= min_area_px) {
            number[at] = ++count;
        }
        label = number[at];
    }
}

}  // namespace

LabelImage split_cells(std::span<const float> background, std::optional<std::span<const float>> distance, int height,
                       int width, const Splitting& splitting) {
    // Single precision, as the maps are: a threshold of 0.3 in double is another number than the float beside it.
    const auto threshold = static_cast<float>(splitting.foreground_threshold);
    std::vector<std::uint8_t> foreground(background.size());
    for (std::size_t at = 0; at < foreground.size(); ++at) {
        foreground[at] = 1.0F - background[at] >= threshold ? 1 : 0;
    }
    LabelImage cells(height, width);
    if (splitting.method == "components") {
        label_regions(foreground, cells);
    } else if (distance) {
        flood_from_cores(*distance, foreground, splitting, cells);
    } else {
        fail(ErrorKind::bundle, "splitting.method='distance' with a graph that has no output 'distance'",
             "that output", "splitting.method=components");
    }
    keep_large(cells, splitting.min_area_px);
    return cells;
}

}  // namespace cellvision
