#include "detections/nms.hpp"

#include <algorithm>
#include <numeric>

namespace cellvision {
namespace {

/// Intersection over union in single precision, as net and graph compute it; no number for two boxes without an inside.
float compute_iou(const Box& one, const Box& other) {
    const float width = std::max(std::min(one[2], other[2]) - std::max(one[0], other[0]), 0.0F);
    const float height = std::max(std::min(one[3], other[3]) - std::max(one[1], other[1]), 0.0F);
    const float shared = width * height;
    const float first = (one[2] - one[0]) * (one[3] - one[1]);
    const float second = (other[2] - other[0]) * (other[3] - other[1]);
    return shared / (first + second - shared);
}

}  // namespace

std::vector<std::size_t> suppress(std::span<const Box> boxes, std::span<const float> scores,
                                  std::span<const std::int64_t> classes, float least, double iou,
                                  std::size_t most) {
    std::vector<std::size_t> order(scores.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::erase_if(order, [&](std::size_t at) { return !(scores[at] >= least); });
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
    std::vector<std::size_t> kept;
    for (const std::size_t at : order) {
        if (kept.size() == most) {
            break;
        }
        const bool is_double = std::any_of(kept.begin(), kept.end(), [&](std::size_t better) {
            return classes[better] == classes[at] && static_cast<double>(compute_iou(boxes[at], boxes[better])) > iou;
        });
        if (!is_double) {
            kept.push_back(at);
        }
    }
    return kept;
}

}  // namespace cellvision
