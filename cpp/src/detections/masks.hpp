#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "cellvision/image.hpp"

namespace cellvision {

/// left, top, right, bottom in px; pixel (0, 0) covers 0..1 in both directions.
using Box = std::array<float, 4>;

/// The pixels of one cell, in a window inside the image that holds them all and may be 0 px high or wide.
struct MaskCrop {
    int top = 0;
    int left = 0;
    int height = 0;
    int width = 0;
    std::vector<std::uint8_t> mask;  ///< (height * width,) 0 or 1

    [[nodiscard]] std::int64_t area() const;
};

/// The pixels whose centres have a probability of at least `threshold`, interpolated bilinearly over the box.
///
/// Beyond the outermost samples the probability falls to 0 within one sample distance. Weights are computed in double
/// and the result is compared in single precision, so that a mask of the threshold itself is whole.
///
/// @param probability (side * side,) in 0..1, stretched over the box.
/// @param box in px of the image; may leave it. One without an inside has no pixels.
/// @param height, width px of the image.
/// @param threshold in (0, 1].
[[nodiscard]] MaskCrop crop_mask(std::span<const float> probability, int side, const Box& box, int height, int width,
                                 double threshold);

/// One label image of cells that overlap: each pixel belongs to one cell, the first painted that claims it.
class Canvas {
public:
    /// @param min_area_px cells with fewer visible pixels are dropped.
    /// @param min_visible smallest share of its mask that must be free, in 0..1.
    Canvas(int height, int width, int min_area_px, double min_visible)
        : labels_(height, width), min_area_px_(min_area_px), min_visible_(min_visible) {}

    /// Paints a cell as the next number, or drops it as a whole; tells whether it was painted.
    bool paint(const MaskCrop& crop);

    [[nodiscard]] std::int32_t count() const noexcept { return count_; }
    [[nodiscard]] LabelImage& labels() noexcept { return labels_; }

private:
    LabelImage labels_;
    int min_area_px_;
    double min_visible_;
    std::int32_t count_ = 0;
};

}  // namespace cellvision
