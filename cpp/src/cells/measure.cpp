#include "cells/measure.hpp"

#include <algorithm>

namespace cellvision {
namespace {

void add_each(std::vector<double>& sums, const std::vector<double>& values) {
    sums.resize(values.size(), 0.0);
    for (std::size_t i = 0; i < values.size(); ++i) {
        sums[i] += values[i];
    }
}

/// Calls `see(cell, y, x)` for each pixel of a cell in the tile's core; y and x are px of the image.
template <typename See>
void for_each_pixel(const Window& window, const Tile& tile, std::vector<CellSums>& sums, See see) {
    for (int y = tile.rows.start; y < tile.rows.stop; ++y) {
        const std::int32_t* row = window.labels.row(y - tile.rows.window_start);
        for (int x = tile.columns.start; x < tile.columns.stop; ++x) {
            if (const std::int32_t label = row[x - tile.columns.window_start]; label > 0) {
                see(sums[static_cast<std::size_t>(label - 1)], y, x);
            }
        }
    }
}

void add_shapes(const Window& window, const Tile& tile, std::vector<CellSums>& sums) {
    for_each_pixel(window, tile, sums, [&](CellSums& cell, int y, int x) {
        ++cell.area;
        cell.sum_y += y;
        cell.sum_x += x;
        cell.first = std::min(cell.first, std::int64_t{y} * window.image.width + x);
        cell.top = std::min<std::int64_t>(cell.top, y);
        cell.left = std::min<std::int64_t>(cell.left, x);
        cell.bottom = std::max<std::int64_t>(cell.bottom, y + 1);
        cell.right = std::max<std::int64_t>(cell.right, x + 1);
    });
}

template <typename T>
void add_counts(const Window& window, const Tile& tile, std::size_t channel, std::vector<CellSums>& sums) {
    const std::span<const T> plane = window.image.counts<T>(window.order[channel]);
    const auto width = static_cast<std::size_t>(window.image.width);
    for_each_pixel(window, tile, sums, [&](CellSums& cell, int y, int x) {
        const std::size_t at = static_cast<std::size_t>(y) * width + static_cast<std::size_t>(x);
        cell.intensity[channel] += static_cast<double>(plane[at]);
    });
}

void add_intensities(const Window& window, const Tile& tile, std::vector<CellSums>& sums) {
    for (std::size_t channel = 0; channel < window.order.size(); ++channel) {
        switch (window.image.dtype) {
            case DType::uint8: add_counts<std::uint8_t>(window, tile, channel, sums); break;
            case DType::uint16: add_counts<std::uint16_t>(window, tile, channel, sums); break;
            case DType::float32: add_counts<float>(window, tile, channel, sums); break;
        }
    }
}

void add_probabilities(const Window& window, const Tile& tile, std::vector<CellSums>& sums) {
    const std::size_t plane = window.labels.data.size();
    const auto width = static_cast<std::size_t>(window.labels.width);
    const auto shares = static_cast<std::size_t>(window.classes - 1);
    for_each_pixel(window, tile, sums, [&](CellSums& cell, int y, int x) {
        const std::size_t at = static_cast<std::size_t>(y - tile.rows.window_start) * width +
                               static_cast<std::size_t>(x - tile.columns.window_start);
        double total = 0.0;
        for (std::size_t k = 1; k <= shares; ++k) {
            total += static_cast<double>(window.probabilities[k * plane + at]);
        }
        total = std::max(total, 1e-12);  // a pixel may be foreground at P = 0 after rounding
        for (std::size_t k = 1; k <= shares; ++k) {
            cell.probability[k - 1] += static_cast<double>(window.probabilities[k * plane + at]) / total;
        }
    });
}

int find_class(const Manifest& manifest, std::string_view name) {
    return static_cast<int>(std::find(manifest.classes.begin(), manifest.classes.end(), name) -
                            manifest.classes.begin());
}

}  // namespace

void CellSums::add(const CellSums& piece) {
    area += piece.area;
    sum_y += piece.sum_y;
    sum_x += piece.sum_x;
    first = std::min(first, piece.first);
    top = std::min(top, piece.top);
    left = std::min(left, piece.left);
    bottom = std::max(bottom, piece.bottom);
    right = std::max(right, piece.right);
    add_each(intensity, piece.intensity);
    add_each(probability, piece.probability);
}

std::vector<CellSums> measure_cells(const Window& window, const Tile& tile, std::int32_t count) {
    CellSums none;
    none.intensity.assign(window.order.size(), 0.0);
    none.probability.assign(window.probabilities.empty() ? 0 : static_cast<std::size_t>(window.classes - 1), 0.0);
    std::vector<CellSums> sums(static_cast<std::size_t>(count), none);
    add_shapes(window, tile, sums);
    add_intensities(window, tile, sums);
    if (!window.probabilities.empty()) {
        add_probabilities(window, tile, sums);
    }
    return sums;
}

std::vector<Cell> build_cells(const std::vector<CellSums>& sums, const Manifest& manifest) {
    std::vector<Cell> cells;
    cells.reserve(sums.size());
    for (const CellSums& sum : sums) {
        const auto area = static_cast<double>(sum.area);
        const auto mean = [area](double value) { return value / area; };
        Cell cell;
        cell.label = static_cast<std::int32_t>(cells.size()) + 1;
        cell.area_px = sum.area;
        cell.centroid_y_px = sum.sum_y / area;
        cell.centroid_x_px = sum.sum_x / area;
        cell.bbox = {sum.top, sum.left, sum.bottom, sum.right};
        cell.mean_intensity.resize(sum.intensity.size());
        std::transform(sum.intensity.begin(), sum.intensity.end(), cell.mean_intensity.begin(), mean);
        cell.probabilities.resize(sum.probability.size());
        std::transform(sum.probability.begin(), sum.probability.end(), cell.probabilities.begin(), mean);
        if (manifest.kind == "viability") {
            cell.class_id = choose_live_or_dead(cell.probabilities, manifest);
        } else if (!cell.probabilities.empty()) {
            const auto best = std::max_element(cell.probabilities.begin(), cell.probabilities.end());
            cell.class_id = static_cast<int>(best - cell.probabilities.begin()) + 1;
        }
        cells.push_back(std::move(cell));
    }
    return cells;
}

int choose_live_or_dead(std::span<const double> probabilities, const Manifest& manifest) {
    const int live = find_class(manifest, "live");
    // Rounded in the sum of thousands of pixels, a P(live) that is the threshold in every pixel must still reach it.
    const bool lives = probabilities[static_cast<std::size_t>(live - 1)] >= manifest.live_threshold - 1e-9;
    return lives ? live : find_class(manifest, "dead");
}

}  // namespace cellvision
