#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cellvision/cells.hpp"
#include "cellvision/image.hpp"
#include "cellvision/manifest.hpp"
#include "tiles/tiling.hpp"

namespace cellvision {

/// What is known of one label as sums and extremes, so that pieces of a cell can be added up.
struct CellSums {
    std::int64_t area = 0;  ///< px; 0 for a label that does not occur
    double sum_y = 0.0;     ///< of pixel coordinates in the whole image
    double sum_x = 0.0;
    std::int64_t first = INT64_MAX;  ///< smallest y * image width + x
    std::int64_t top = INT64_MAX;
    std::int64_t left = INT64_MAX;
    std::int64_t bottom = 0;  ///< one past the last
    std::int64_t right = 0;
    std::vector<double> intensity;    ///< (C,) sums of the raw counts
    std::vector<double> probability;  ///< (K-1,) sums of P(class) / P(any foreground class)

    /// Adds the sums of another piece of the same cell.
    void add(const CellSums& piece);
};

/// What a window of an image shows.
struct Window {
    const LabelImage& labels;               ///< (h, w) of the window, 1..N
    const Image& image;                     ///< the whole image, raw counts
    std::span<const int> order;             ///< (C,) channels of `image` to measure
    std::span<const float> probabilities;   ///< (K, h, w) of the window, background first; empty where there are none
    int classes = 1;                        ///< K
};

/// Sums of the labels 1..count of a window, over the core of its tile.
[[nodiscard]] std::vector<CellSums> measure_cells(const Window& window, const Tile& tile, std::int32_t count);

/// The record of cells 1..N from their sums, none of them empty. Class ids are the likeliest, or for a viability net
/// live where P(live) reaches its threshold.
[[nodiscard]] std::vector<Cell> build_cells(const std::vector<CellSums>& sums, const Manifest& manifest);

/// Class id, 1..K-1, of (K-1,) probabilities: live where P(live) reaches the manifest's threshold, else dead.
[[nodiscard]] int choose_live_or_dead(std::span<const double> probabilities, const Manifest& manifest);

}  // namespace cellvision
