#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cellvision/image.hpp"

namespace cellvision {

/// Connected regions of a mask, pixels connected over edges, numbered from 1 in raster order of their first pixel.
///
/// @param mask (height * width,) 0 or 1.
/// @param labels receives (height, width) numbers, 0 outside the mask.
/// @return the number of regions.
std::int32_t label_regions(std::span<const std::uint8_t> mask, LabelImage& labels);

/// Seeds flood the mask from high to low `height_map`, pixels connected over their edges.
///
/// The same labels as scikit-image's watershed of the negative map: of pixels of one level the one that was reached
/// first is flooded first, and a pixel belongs to the seed that reaches it first.
///
/// @param height_map (height * width,) priorities; the highest are flooded first.
/// @param mask (height * width,) 0 or 1; what may be flooded.
/// @param labels seeds > 0 inside the mask and 0 elsewhere; receives the flooded regions.
void flood(std::span<const float> height_map, std::span<const std::uint8_t> mask, LabelImage& labels);

}  // namespace cellvision
