#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cellvision/image.hpp"
#include "cellvision/viability.hpp"

namespace cellvision {

/// One cell. Pixel centres lie at whole numbers: the centre of the top left pixel is (0, 0).
struct Cell {
    std::int32_t label = 0;                ///< its number in the label image, from 1
    int class_id = 0;                      ///< index into Cells::classes, 1..K-1
    std::int64_t area_px = 0;              ///< visible pixels
    double centroid_y_px = 0.0;
    double centroid_x_px = 0.0;
    std::array<std::int64_t, 4> bbox{};    ///< top, left, bottom, right, whole px; the last two are one past the last
    std::vector<double> mean_intensity;    ///< (C,), in the image's own counts, order of Cells::channels
    std::vector<double> probabilities;     ///< (K-1,) in 0..1, of each class but the background; sum 1
    std::optional<double> score;           ///< in 0..1, how sure the net is; only from nets that find cells themselves
};

/// What was found in one image; what cellvision.runtime.cells.Cells is in Python.
struct Cells {
    int height = 0;                         ///< of the image, px
    int width = 0;                          ///< of the image, px
    std::vector<std::string> classes;       ///< (K,) names, background first
    std::vector<std::string> channels;      ///< (C,) names in the order of Cell::mean_intensity
    std::string kind;                       ///< "semantic", "viability" or "instance"
    std::optional<double> pixel_size_um;    ///< edge of a pixel in micrometres, or nothing where unknown
    LabelImage label_image;                 ///< (H, W), 0 = background
    std::vector<Cell> cells;                ///< (N,), labels 1..N in order
    int tiles = 1;                          ///< number of tiles that the image was worked on in
    std::vector<std::string> notes;         ///< what to know of the way they were found, a sentence each

    [[nodiscard]] std::size_t size() const noexcept { return cells.size(); }

    /// Number of cells of a class; 0 for a name that is no class.
    [[nodiscard]] std::int64_t count(std::string_view class_name) const;

    /// Whether these cells are told apart as live and dead: viability nets, and instance nets of just those classes.
    [[nodiscard]] bool has_viability() const;

    /// P(live) of a cell in 0..1, or nothing where the net does not tell live from dead.
    [[nodiscard]] std::optional<double> p_live(const Cell& cell) const;

    /// Area of a cell in square micrometres, or nothing where the pixel size is unknown.
    [[nodiscard]] std::optional<double> area_um2(const Cell& cell) const;

    /// Share of live cells with its Wilson interval; throws Error where the net does not tell live from dead.
    [[nodiscard]] Viability viability(double confidence = 0.95) const;
};

}  // namespace cellvision
