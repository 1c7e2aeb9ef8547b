#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cellvision::io {

/// Type of a stored number; more kinds than images have after reading.
enum class Sample { boolean, u8, u16, u32, u64, i8, i16, i32, i64, f16, f32, f64 };

[[nodiscard]] std::size_t size_of(Sample sample) noexcept;
[[nodiscard]] std::string_view to_name(Sample sample) noexcept;  ///< as numpy calls it
[[nodiscard]] bool is_float(Sample sample) noexcept;

/// An image as stored, planar (C, H, W), an alpha channel included as the last.
struct Planes {
    int channels = 0;
    int height = 0;
    int width = 0;
    Sample sample = Sample::u8;
    std::vector<std::byte> data;

    [[nodiscard]] std::size_t pixels() const noexcept {
        return static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
    }
};

/// What the header of a file says.
struct Header {
    int channels = 0;  ///< alpha included
    int height = 0;
    int width = 0;
    Sample sample = Sample::u8;
    bool has_alpha = false;
    std::vector<std::string> channel_names;
    std::optional<double> pixel_size_um;
};

/// Planes as a header describes them, still without data.
[[nodiscard]] Planes make_planes(const Header& header, int channels);

/// An open image file of one format. Opening reads the header and refuses what can never be read faithfully.
class Source {
public:
    explicit Source(std::filesystem::path path) : path_(std::move(path)) {}
    virtual ~Source() = default;
    Source(const Source&) = delete;
    Source& operator=(const Source&) = delete;

    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
    [[nodiscard]] const Header& header() const noexcept { return header_; }

    /// Throws Error if the stored numbers are no counts (palette indices, inverted grey).
    virtual void check_image() const {}
    [[nodiscard]] virtual Planes read_counts() = 0;
    /// As read_counts, but palette indices stay indices.
    [[nodiscard]] virtual Planes read_labels() { return read_counts(); }

protected:
    Header header_;

private:
    std::filesystem::path path_;
};

[[nodiscard]] std::unique_ptr<Source> open_png(const std::filesystem::path& path);
[[nodiscard]] std::unique_ptr<Source> open_jpeg(const std::filesystem::path& path);
[[nodiscard]] std::unique_ptr<Source> open_tiff(const std::filesystem::path& path);

/// Throws Error, before anything is decoded, if a read would return more samples than the limit (nothing: the library's
/// own, and the test for decompression bombs).
void check_size(const std::filesystem::path& path, std::uint64_t samples, std::optional<std::uint64_t> max_samples);

/// Throws the Error for a file that is intact but of a kind that cannot be read faithfully.
[[noreturn]] void refuse(const std::filesystem::path& path, std::string_view what, std::string_view need,
                         std::string_view hint);

/// Throws the Error for damaged bytes; `why` is the decoder's complaint.
[[noreturn]] void fail_decoding(const std::filesystem::path& path, std::string_view why);

/// The whole file; Error where it cannot be read.
[[nodiscard]] std::vector<unsigned char> read_bytes(const std::filesystem::path& path);

/// The EXIF orientation (1 to 8) in the bytes of a TIFF directory, 1 where there is none.
[[nodiscard]] int find_orientation(const unsigned char* exif, std::size_t size) noexcept;

/// Throws Error for an image that its EXIF data turns: viewers disagree on turning it.
void check_upright(const std::filesystem::path& path, int orientation);

/// 16-bit float to 32-bit; exact.
[[nodiscard]] float to_float(std::uint16_t half) noexcept;

}  // namespace cellvision::io
