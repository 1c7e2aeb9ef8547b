#include "graphs/inputs.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>

#include "cellvision/error.hpp"

namespace cellvision {
namespace {

std::string join_names(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) {
        text.append(text.empty() ? "" : ", ").append(name);
    }
    return text;
}

std::string format(auto value) {
    std::array<char, 32> text{};
    return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

/// Whether all counts of one type fit the other without loss.
bool fits(DType from, DType to) {
    return from == to || to == DType::float32 || (from == DType::uint8 && to == DType::uint16);
}

void check_dtype(const Manifest& manifest, const Image& image) {
    const DType dtype = image.dtype;
    const auto& known = manifest.image_dtypes;
    const std::string got = image.name + " is " + std::string(to_name(dtype));
    if (std::find(known.begin(), known.end(), dtype) == known.end()) {
        std::vector<std::string> names;
        std::transform(known.begin(), known.end(), std::back_inserter(names),
                       [](DType one) { return std::string(to_name(one)); });
        fail(ErrorKind::bundle, got + ", whose counts mean something else than the training counts", join_names(names),
             "--intensity-scale F, the factor to the training counts (257 from 8 to 16 bits)");
    }
    if (!fits(dtype, manifest.input_dtype)) {
        fail(ErrorKind::bundle, got + " and the graph reads " + std::string(to_name(manifest.input_dtype)),
             "counts that fit it without loss",
             "--intensity-scale 1 to round them, or export with input_dtype=float32");
    }
}

std::vector<int> order_channels(const Manifest& manifest, const Image& image) {
    constexpr std::string_view hint = "--channels with the names of the image's channels in order";
    const auto wanted = manifest.channel_names();
    const auto& names = image.channel_names;
    std::vector<int> order(wanted.size());
    if (names.empty()) {
        if (static_cast<std::size_t>(image.channels) != wanted.size()) {
            fail(ErrorKind::bundle, image.name + " has " + std::to_string(image.channels) + " channels",
                 std::to_string(wanted.size()) + ": " + join_names(wanted), hint);
        }
        std::iota(order.begin(), order.end(), 0);
        return order;
    }
    if (names.size() != static_cast<std::size_t>(image.channels)) {
        fail(ErrorKind::config,
             std::to_string(names.size()) + " channel names (" + join_names(names) + ") for " + image.name + " of " +
                 std::to_string(image.channels) + " channels",
             "one name per channel", hint);
    }
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        if (std::count(names.begin(), names.end(), wanted[i]) != 1) {
            fail(ErrorKind::bundle, image.name + " has the channels " + join_names(names),
                 wanted[i] + " once among them", hint);
        }
        order[i] = static_cast<int>(std::find(names.begin(), names.end(), wanted[i]) - names.begin());
    }
    return order;
}

void check_finite(float count, std::optional<float> scale) {
    if (!std::isfinite(count)) {
        const std::string by = scale ? " at intensity_scale=" + format(*scale) : "";
        fail(ErrorKind::data, "an image with NaN or infinite values" + by, "finite counts",
             "replace them first, or a smaller factor");
    }
}

template <typename To, typename From>
To convert(From count, std::optional<float> scale) {
    if (!scale) {
        if constexpr (std::is_floating_point_v<From>) {
            check_finite(count, scale);
        }
        return static_cast<To>(count);
    }
    const float scaled = static_cast<float>(count) * *scale;
    check_finite(scaled, scale);
    if constexpr (std::is_floating_point_v<To>) {
        return scaled;
    } else {
        const float rounded = std::nearbyint(scaled);
        if (rounded < 0.0F || rounded > static_cast<float>(std::numeric_limits<To>::max())) {
            fail(ErrorKind::data, "a count of " + format(scaled) + " at intensity_scale=" + format(*scale),
                 "0 to " + std::to_string(std::numeric_limits<To>::max()) + ", which the bundle's " +
                     (sizeof(To) == 1 ? "uint8" : "uint16") + " holds",
                 "another factor, or a bundle of export.py with input_dtype=float32");
        }
        return static_cast<To>(rounded);
    }
}

template <typename To, typename From>
To* fill(const Image& image, const InputMatch& match, const Tile& tile, To* to) {
    std::optional<float> scale;
    if (match.intensity_scale) {
        scale = static_cast<float>(*match.intensity_scale);
    }
    for (const int channel : match.order) {
        const auto plane = image.counts<From>(channel);
        for (int y = tile.rows.window_start; y < tile.rows.window_stop; ++y) {
            const auto begin = static_cast<std::size_t>(y) * static_cast<std::size_t>(image.width) +
                               static_cast<std::size_t>(tile.columns.window_start);
            const auto row = plane.subspan(begin, static_cast<std::size_t>(tile.columns.window_size()));
            to = std::transform(row.begin(), row.end(), to,
                                [scale](From count) { return convert<To, From>(count, scale); });
        }
    }
    return to;
}

template <typename To>
void fill_from(const Image& image, const InputMatch& match, std::span<const Tile> tiles,
               std::vector<std::byte>& bytes) {
    To* to = reinterpret_cast<To*>(bytes.data());
    for (const Tile& tile : tiles) {
        switch (image.dtype) {
            case DType::uint8: to = fill<To, std::uint8_t>(image, match, tile, to); break;
            case DType::uint16: to = fill<To, std::uint16_t>(image, match, tile, to); break;
            case DType::float32: to = fill<To, float>(image, match, tile, to); break;
        }
    }
}

}  // namespace

InputMatch match_input(const Manifest& manifest, const Image& image, std::optional<double> intensity_scale) {
    const std::size_t counts = image.channels > 0 && image.height > 0 && image.width > 0
                                   ? static_cast<std::size_t>(image.channels) * image.pixels()
                                   : 0;
    if (counts == 0 || image.data.size() != counts * size_of(image.dtype)) {
        fail(ErrorKind::shape,
             "an image of " + std::to_string(image.channels) + " channels, " + std::to_string(image.height) + "x" +
                 std::to_string(image.width) + " px and " + std::to_string(image.data.size()) + " bytes",
             "at least 1x1 px, and the bytes of all its counts", "check channels, height, width and dtype");
    }
    if (intensity_scale && !is_intensity_scale(*intensity_scale)) {
        fail(ErrorKind::config, "intensity_scale=" + format(*intensity_scale), std::string(intensity_scales),
             "intensity_scale=257");
    }
    if (image.pixel_size_um && !is_pixel_size(*image.pixel_size_um)) {
        fail(ErrorKind::config, "pixel_size_um=" + format(*image.pixel_size_um), pixel_sizes,
             "leave it out if unknown");
    }
    if (!intensity_scale) {
        check_dtype(manifest, image);
    }
    return {.order = order_channels(manifest, image),
            .dtype = manifest.input_dtype,
            .intensity_scale = intensity_scale};
}

std::vector<std::byte> to_input(const Image& image, const InputMatch& match, std::span<const Tile> tiles) {
    const std::size_t pixels = static_cast<std::size_t>(tiles[0].rows.window_size()) *
                               static_cast<std::size_t>(tiles[0].columns.window_size());
    std::vector<std::byte> bytes(tiles.size() * match.order.size() * pixels * size_of(match.dtype));
    switch (match.dtype) {
        case DType::uint8: fill_from<std::uint8_t>(image, match, tiles, bytes); break;
        case DType::uint16: fill_from<std::uint16_t>(image, match, tiles, bytes); break;
        case DType::float32: fill_from<float>(image, match, tiles, bytes); break;
    }
    return bytes;
}

}  // namespace cellvision
