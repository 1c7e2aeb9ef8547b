#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cellvision {

/// Type of a pixel's count.
enum class DType { uint8, uint16, float32 };

/// Bytes of one count.
[[nodiscard]] std::size_t size_of(DType dtype) noexcept;

/// "uint8", "uint16" or "float32".
[[nodiscard]] std::string_view to_name(DType dtype) noexcept;

/// The type of that name; throws Error where there is none.
[[nodiscard]] DType to_dtype(std::string_view name);

/// Edges that a pixel can have, in micrometres: a TIFF holds the resolutions that they give.
inline constexpr double smallest_pixel_um = 1e-4, largest_pixel_um = 1e6;
inline constexpr std::string_view pixel_sizes = "a number of micrometres from 0.0001 to 1000000";

/// Whether a number is among them.
[[nodiscard]] constexpr bool is_pixel_size(double size_um) noexcept {
    return size_um >= smallest_pixel_um && size_um <= largest_pixel_um;
}

/// What the factor from an image's counts to the training counts can be.
inline constexpr std::string_view intensity_scales = "a factor from 1e-9 to 1e9";

/// Whether a value is one of `intensity_scales`.
[[nodiscard]] constexpr bool is_intensity_scale(double scale) noexcept { return scale >= 1e-9 && scale <= 1e9; }

/// Raw counts of one image, planar: channel by channel, row by row, (C, H, W).
struct Image {
    int channels = 0;
    int height = 0;  ///< px
    int width = 0;   ///< px
    DType dtype = DType::uint8;
    std::vector<std::byte> data;              ///< channels * height * width counts, of the machine's byte order
    std::vector<std::string> channel_names;   ///< one per channel, or empty where unknown
    std::optional<double> pixel_size_um;      ///< edge of a pixel in micrometres, or nothing where unknown
    std::string name = "the image";           ///< for error texts; of an image that was read, its file's

    Image() = default;
    /// A black image.
    Image(int planes, int rows, int columns, DType type);

    [[nodiscard]] std::size_t pixels() const noexcept;                ///< of one channel
    [[nodiscard]] std::span<const std::byte> plane(int channel) const;  ///< bytes of one channel
    [[nodiscard]] std::span<std::byte> plane(int channel);

    /// Counts of one channel, (H * W,); T must be the type that `dtype` names.
    template <typename T>
    [[nodiscard]] std::span<const T> counts(int channel) const {
        return {reinterpret_cast<const T*>(plane(channel).data()), pixels()};
    }
    template <typename T>
    [[nodiscard]] std::span<T> counts(int channel) {
        return {reinterpret_cast<T*>(plane(channel).data()), pixels()};
    }
};

/// Which cell every pixel belongs to: 0 = background, 1..N = one cell each.
struct LabelImage {
    int height = 0;  ///< px
    int width = 0;   ///< px
    std::vector<std::int32_t> data;  ///< height * width labels, row by row

    LabelImage() = default;
    LabelImage(int rows, int columns)
        : height(rows), width(columns), data(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns)) {}

    [[nodiscard]] std::int32_t* row(int y) noexcept {
        return data.data() + static_cast<std::size_t>(y) * static_cast<std::size_t>(width);
    }
    [[nodiscard]] const std::int32_t* row(int y) const noexcept {
        return data.data() + static_cast<std::size_t>(y) * static_cast<std::size_t>(width);
    }
};

}  // namespace cellvision
