#include <algorithm>
#include <array>
#include <cmath>

#include "cellvision/writers.hpp"
#include "files/legend.hpp"

namespace cellvision {

namespace {

using Tint = std::array<float, 3>;

constexpr int largest_overview_px = 3000;
constexpr double low_percent = 1.0;  // percentiles shown as black and as brightest
constexpr double high_percent = 99.8;
constexpr float brightest = 255.0F * 0.7F;  // so that outlines stand out even on saturated cells

Tint choose_tint(const Channel& channel) {
    if (channel.role == "nuclear") {
        return {0.35F, 0.55F, 1.0F};
    }
    if (channel.role == "live") {
        return {0.1F, 0.9F, 0.1F};
    }
    return channel.role == "dead" ? Tint{0.9F, 0.1F, 0.9F} : Tint{0.8F, 0.8F, 0.8F};
}

/// Green and magenta are told apart with every common kind of colour blindness; green and red are not.
Colour choose_colour(const std::string& name, std::size_t class_id) {
    constexpr std::array<Colour, 6> others{
        {{230, 159, 0}, {86, 180, 233}, {240, 228, 66}, {0, 158, 115}, {213, 94, 0}, {204, 121, 167}}};
    if (name == "live") {
        return {0, 255, 0};
    }
    return name == "dead" ? Colour{255, 0, 255} : others[(class_id - 1) % others.size()];
}

/// The value below which a share of the values lie, between the two nearest; reorders `values`.
double find_percentile(std::vector<float>& values, double percent) {
    const double place = percent / 100.0 * static_cast<double>(values.size() - 1);
    const auto below = static_cast<std::ptrdiff_t>(place);
    std::nth_element(values.begin(), values.begin() + below, values.end());
    const double low = values[static_cast<std::size_t>(below)];
    if (below + 1 == static_cast<std::ptrdiff_t>(values.size())) {
        return low;
    }
    const double high = *std::min_element(values.begin() + below + 1, values.end());
    return low + (high - low) * (place - static_cast<double>(below));
}

void stretch(std::vector<float>& plane, std::vector<float> sorted) {
    const double low = find_percentile(sorted, low_percent);
    const double span = std::max(find_percentile(sorted, high_percent) - low, 1e-6);
    for (float& value : plane) {
        value = static_cast<float>(std::clamp((static_cast<double>(value) - low) / span, 0.0, 1.0));
    }
}

/// The place of pixel (y, x) in an image of that width.
std::size_t locate(int y, int x, int width) {
    return static_cast<std::size_t>(y) * static_cast<std::size_t>(width) + static_cast<std::size_t>(x);
}

template <typename T>
std::vector<float> shrink(const Image& image, int channel, int step, int height, int width) {
    std::vector<float> sums(static_cast<std::size_t>(height) * static_cast<std::size_t>(width));
    const auto counts = image.counts<T>(channel);
    for (int y = 0; y < image.height; ++y) {
        for (int x = 0; x < image.width; ++x) {
            sums[locate(y / step, x / step, width)] += static_cast<float>(counts[locate(y, x, image.width)]);
        }
    }
    for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width; ++x) {
            const int pixels = std::min(step, image.height - y * step) * std::min(step, image.width - x * step);
            sums[locate(y, x, width)] /= static_cast<float>(pixels);
        }
    }
    return sums;
}

std::vector<std::vector<float>> shrink_channels(const Image& image, int step, int height, int width) {
    std::vector<std::vector<float>> planes;
    for (int c = 0; c < image.channels; ++c) {
        switch (image.dtype) {
            case DType::uint8: planes.push_back(shrink<std::uint8_t>(image, c, step, height, width)); break;
            case DType::uint16: planes.push_back(shrink<std::uint16_t>(image, c, step, height, width)); break;
            case DType::float32: planes.push_back(shrink<float>(image, c, step, height, width)); break;
        }
    }
    return planes;
}

/// The colour of every channel, and the channels stretched to 0..1: those of a colour picture by one range.
std::vector<Tint> tint(std::vector<std::vector<float>>& planes, const std::vector<Channel>& channels) {
    if (channels.size() == 3 && channels[0].name == "red" && channels[1].name == "green" &&
        channels[2].name == "blue") {
        std::vector<float> all;
        for (const auto& plane : planes) {
            all.insert(all.end(), plane.begin(), plane.end());
        }
        for (auto& plane : planes) {
            stretch(plane, all);
        }
        return {{1.0F, 0.0F, 0.0F}, {0.0F, 1.0F, 0.0F}, {0.0F, 0.0F, 1.0F}};
    }
    for (auto& plane : planes) {
        stretch(plane, plane);
    }
    if (planes.size() == 1) {
        return {{1.0F, 1.0F, 1.0F}};
    }
    std::vector<Tint> tints;
    std::transform(channels.begin(), channels.end(), std::back_inserter(tints), choose_tint);
    return tints;
}

/// Whether a pixel is of a cell and has an edge to another label.
bool is_outline(const LabelImage& labels, int y, int x) {
    const std::int32_t own = labels.row(y)[x];
    if (own <= 0) {
        return false;
    }
    return (y > 0 && labels.row(y - 1)[x] != own) || (y + 1 < labels.height && labels.row(y + 1)[x] != own) ||
           (x > 0 && labels.row(y)[x - 1] != own) || (x + 1 < labels.width && labels.row(y)[x + 1] != own);
}

}  // namespace

Picture draw_overlay(const Image& image, const Cells& cells, const std::vector<Channel>& channels) {
    const int step = (std::max(image.height, image.width) + largest_overview_px - 1) / largest_overview_px;
    Picture picture{.height = (image.height + step - 1) / step, .width = (image.width + step - 1) / step, .rgb = {}};
    auto planes = shrink_channels(image, step, picture.height, picture.width);
    const std::vector<Tint> tints = tint(planes, channels);
    const std::size_t pixels = static_cast<std::size_t>(picture.height) * static_cast<std::size_t>(picture.width);
    picture.rgb.resize(pixels * 3);
    for (std::size_t i = 0; i < pixels; ++i) {
        for (std::size_t k = 0; k < 3; ++k) {
            float sum = 0.0F;
            for (std::size_t c = 0; c < planes.size(); ++c) {
                sum += tints[c][k] * planes[c][i];
            }
            picture.rgb[i * 3 + k] = static_cast<unsigned char>(std::min(sum, 1.0F) * brightest);
        }
    }
    std::vector<std::size_t> outlines(pixels);
    for (int y = 0; y < cells.height; ++y) {
        for (int x = 0; x < cells.width; ++x) {
            if (is_outline(cells.label_image, y, x)) {
                const auto label = static_cast<std::size_t>(cells.label_image.row(y)[x]);
                auto& place = outlines[locate(y / step, x / step, picture.width)];
                place = std::max(place, static_cast<std::size_t>(cells.cells[label - 1].class_id));
            }
        }
    }
    for (std::size_t i = 0; i < pixels; ++i) {
        if (outlines[i] > 0) {
            const Colour colour = choose_colour(cells.classes[outlines[i]], outlines[i]);
            std::copy(colour.begin(), colour.end(), picture.rgb.begin() + static_cast<std::ptrdiff_t>(i * 3));
        }
    }
    std::vector<LegendPart> parts;
    for (std::size_t i = 1; i < cells.classes.size(); ++i) {
        const std::string& name = cells.classes[i];
        parts.push_back({name + " " + std::to_string(cells.count(name)), choose_colour(name, i)});
    }
    if (cells.has_viability()) {
        parts.push_back({format_viability(cells), {255, 255, 255}});
    }
    return add_legend(picture, parts);
}

}  // namespace cellvision
