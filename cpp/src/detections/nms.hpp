#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "detections/masks.hpp"

namespace cellvision {

/// Places of the candidates that stay, best first: greedy suppression, class by class.
///
/// Candidates with a score below `least`, which is 0 or more, are none. Of equals the first is better. Of two of one
/// class that overlap by more than `iou`, the worse is dropped.
///
/// @param boxes, scores, classes (P,) of the candidates.
/// @param iou largest intersection over union that both may have, in (0, 1).
/// @param most so many of the best that stay are returned.
[[nodiscard]] std::vector<std::size_t> suppress(std::span<const Box> boxes, std::span<const float> scores,
                                                std::span<const std::int64_t> classes, float least, double iou,
                                                std::size_t most);

}  // namespace cellvision
