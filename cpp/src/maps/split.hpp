#pragma once

#include <optional>
#include <span>

#include "cellvision/image.hpp"
#include "cellvision/manifest.hpp"

namespace cellvision {

/// Label image of the separate cells, numbered 1..N in raster order of their first pixel.
///
/// A pixel belongs to a cell where 1 - P(background) reaches the foreground threshold. By "distance" each connected
/// core floods its surroundings downhill, and foreground that no core reaches is one cell per connected region; by
/// "components" every connected region is a cell. Pixels are connected over their edges, not over corners.
///
/// @param background (height * width,) P(background) in 0..1.
/// @param distance (height * width,) 1 at a cell's core; must be there for "distance".
[[nodiscard]] LabelImage split_cells(std::span<const float> background, std::optional<std::span<const float>> distance,
                                     int height, int width, const Splitting& splitting);

}  // namespace cellvision
