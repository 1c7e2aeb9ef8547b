#include "detections/masks.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace cellvision {
namespace {

/// Of one row (column) of pixels, the two samples around it and their weights; a sample outside has weight 0.
struct Weights {
    std::size_t near = 0;
    std::size_t far = 0;
    double near_weight = 0.0;
    double far_weight = 0.0;
};

struct Axis {
    int first = 0;  // first pixel that samples can reach
    std::vector<Weights> pixels;
};

double weigh(double place, double sample, int samples) {
    const bool exists = sample >= 0.0 && sample < samples;
    return exists ? std::max(1.0 - std::abs(place - sample), 0.0) : 0.0;
}

std::size_t clip_index(double sample, int samples) {
    return static_cast<std::size_t>(std::clamp(sample, 0.0, static_cast<double>(samples - 1)));
}

/// Clips before it converts: a box of a wild net may lie beyond what an int holds.
int to_pixel(double place, int low, int high) {
    return static_cast<int>(std::clamp(place, static_cast<double>(low), static_cast<double>(high)));
}

Axis weigh_samples(double start, double stop, int samples, int pixels) {
    Axis axis;
    const double length = stop - start;
    if (!(length > 0.0 && length < std::numeric_limits<double>::infinity())) {
        return axis;
    }
    const double reach = length / (2.0 * samples);
    axis.first = to_pixel(std::floor(start - reach - 0.5), 0, pixels);
    const int last = to_pixel(std::ceil(stop + reach + 0.5), axis.first, pixels);
    axis.pixels.reserve(static_cast<std::size_t>(last - axis.first));
    for (int pixel = axis.first; pixel < last; ++pixel) {
        const double place = (pixel + (0.5 - start)) * (samples / length) - 0.5;
        const double sample = std::floor(place);
        axis.pixels.push_back({.near = clip_index(sample, samples),
                               .far = clip_index(sample + 1.0, samples),
                               .near_weight = weigh(place, sample, samples),
                               .far_weight = weigh(place, sample + 1.0, samples)});
    }
    return axis;
}

}  // namespace

std::int64_t MaskCrop::area() const { return std::count(mask.begin(), mask.end(), std::uint8_t{1}); }

MaskCrop crop_mask(std::span<const float> probability, int side, const Box& box, int height, int width,
                   double threshold) {
    const Axis rows = weigh_samples(box[1], box[3], side, height);
    const Axis columns = weigh_samples(box[0], box[2], side, width);
    MaskCrop crop{.top = rows.first,
                  .left = columns.first,
                  .height = static_cast<int>(rows.pixels.size()),
                  .width = static_cast<int>(columns.pixels.size()),
                  .mask = {}};
    crop.mask.reserve(rows.pixels.size() * columns.pixels.size());
    const auto samples = static_cast<std::size_t>(side);
    const auto least = static_cast<float>(threshold);
    std::vector<double> line(samples);
    for (const Weights& row : rows.pixels) {
        for (std::size_t i = 0; i < samples; ++i) {
            line[i] = row.near_weight * static_cast<double>(probability[row.near * samples + i]) +
                      row.far_weight * static_cast<double>(probability[row.far * samples + i]);
        }
        for (const Weights& column : columns.pixels) {
            const double value = line[column.near] * column.near_weight + line[column.far] * column.far_weight;
            crop.mask.push_back(static_cast<float>(value) >= least ? 1 : 0);
        }
    }
    return crop;
}

bool Canvas::paint(const MaskCrop& crop) {
    const std::int64_t area = crop.area();
    if (area < min_area_px_) {
        return false;
    }
    const auto visit = [&](auto&& act) {
        const std::uint8_t* inside = crop.mask.data();
        for (int y = 0; y < crop.height; ++y) {
            std::int32_t* row = labels_.row(crop.top + y) + crop.left;
            for (int x = 0; x < crop.width; ++x, ++inside) {
                if (*inside != 0 && row[x] == 0) {
                    act(row[x]);
                }
            }
        }
    };
    std::int64_t visible = 0;
    visit([&](std::int32_t&) { ++visible; });
    const double needed = std::max(static_cast<double>(min_area_px_), min_visible_ * static_cast<double>(area));
    if (static_cast<double>(visible) < needed) {
        return false;
    }
    ++count_;
    visit([&](std::int32_t& label) { label = count_; });
    return true;
}

}  // namespace cellvision
