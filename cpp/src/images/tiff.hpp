#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "images/source.hpp"

namespace cellvision::io {

using Shape = std::vector<std::uint64_t>;

constexpr std::uint64_t most_planes = 1U << 15;    ///< of one image
constexpr std::uint64_t largest_axis = 1ULL << 31;  ///< its longest axis

/// A text that is a whole number up to largest_axis and nothing else.
[[nodiscard]] std::optional<std::uint64_t> to_number(std::string_view text);

/// The product of all lengths; 0 where it leaves 62 bits.
[[nodiscard]] std::uint64_t multiply(const Shape& shape) noexcept;

/// One image directory of a TIFF file, as its tags say.
struct Page {
    std::uint64_t offset = 0;  ///< of the directory
    std::uint64_t next = 0;    ///< offset of the next directory, or 0
    std::uint32_t subfile_type = 0;
    std::uint32_t width = 0, height = 0, depth = 1;
    std::uint32_t tile_width = 0, tile_height = 0, tile_depth = 1;  ///< width 0 for strips
    std::uint32_t rows_per_strip = 0;
    std::uint32_t bits = 1, sample_format = 1, samples = 1, planar = 1;
    std::uint32_t compression = 1, predictor = 1, fill_order = 1;
    std::uint32_t photometric = 0, orientation = 1, resolution_unit = 2;
    bool has_uneven_samples = false;  ///< samples of different bits or formats
    std::vector<std::uint32_t> extra_samples;
    std::optional<double> units_per_pixel_x;  ///< in the resolution unit
    std::optional<double> units_per_pixel_y;
    std::string description;         ///< first ImageDescription
    std::string second_description;  ///< ImageJ's, where it comes after OME-XML
    std::vector<std::uint64_t> offsets;
    std::vector<std::uint64_t> byte_counts;
    std::string software;
    std::vector<std::uint64_t> private_tags;  ///< numbers of tags from 32768 up, which are not TIFF's own

    [[nodiscard]] bool is_tiled() const noexcept { return tile_width > 0; }
    [[nodiscard]] bool has_samples_axis() const noexcept { return photometric == 2 || samples > 1; }
    [[nodiscard]] std::uint64_t separate() const noexcept { return has_samples_axis() && planar != 1 ? samples : 1; }
    [[nodiscard]] std::uint64_t contiguous() const noexcept { return has_samples_axis() && planar == 1 ? samples : 1; }
    [[nodiscard]] Shape shape() const;                       ///< e.g. (H, W), (H, W, S), (S, H, W)
    [[nodiscard]] std::string axes() const;                  ///< e.g. "YX", "YXS", "SYX"
    [[nodiscard]] std::optional<Sample> sample() const;      ///< of its numbers, or nothing for kinds that nobody has
    /// Whether its numbers lie in the file as they are, one strip after the other.
    [[nodiscard]] bool is_final() const;
    [[nodiscard]] bool is_alike(const Page& other) const;  ///< whether both can be planes of one image
};

/// The bytes of a TIFF file and its directories; knows tags, not what they mean together.
class TiffFile {
public:
    /// Reads all directories; throws Error where the file is damaged or has more than 2**15 of them.
    explicit TiffFile(const std::filesystem::path& path);

    [[nodiscard]] const std::vector<Page>& pages() const noexcept { return pages_; }
    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
    [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
    [[nodiscard]] bool is_native_order() const noexcept;

    /// Bytes of the file; throws Error where it ends early.
    void read(std::uint64_t offset, std::byte* out, std::uint64_t count) const;

private:
    struct Entry;
    [[nodiscard]] std::uint64_t get(const std::byte* bytes, std::size_t count) const noexcept;
    [[nodiscard]] Page read_page(std::uint64_t offset) const;
    void read_entry(const Entry& entry, Page& page, bool* has_description) const;
    [[nodiscard]] std::vector<std::byte> read_values(const Entry& entry) const;
    [[nodiscard]] std::vector<std::uint64_t> read_numbers(const Entry& entry) const;
    [[nodiscard]] std::string read_text(const Entry& entry) const;
    [[nodiscard]] std::optional<double> read_inverse(const Entry& entry) const;

    std::filesystem::path path_;
    mutable std::ifstream stream_;
    std::uint64_t size_ = 0;
    bool is_little_ = true;
    bool is_big_tiff_ = false;
    std::vector<Page> pages_;
};

/// The planes of a file that belong together.
struct Series {
    std::string kind;                   ///< "shaped", "ome", "imagej" or "generic"
    std::vector<const Page*> pages;     ///< in order; null where OME-XML lists a plane that the file lacks
    std::string axes;                   ///< e.g. "CYX"
    Shape shape;                        ///< one length per axis
    bool is_contiguous = false;         ///< all numbers lie behind those of the only page
};

/// All series of a file but those of reduced images.
[[nodiscard]] std::vector<Series> find_series(const TiffFile& file);

/// The series that OME-XML lists; none where it names other files or does not fit the pages.
[[nodiscard]] std::vector<Series> find_ome_series(const TiffFile& file);

/// Whether the first page says that it has OME-XML, or ImageJ's notes.
[[nodiscard]] bool is_ome(const TiffFile& file);
[[nodiscard]] bool is_imagej(const TiffFile& file);

/// ImageJ's notes: the value of a key, or an empty text.
[[nodiscard]] std::string find_imagej_note(const TiffFile& file, const std::string& key);

/// Whose rules besides TIFF's a file is made by, e.g. "Zeiss LSM", where Python reads it by those; else empty.
[[nodiscard]] std::string_view find_vendor(const TiffFile& file);

/// Names of all channels from OME-XML; empty where there are not that many.
[[nodiscard]] std::vector<std::string> find_channel_names(const TiffFile& file, int channels);

/// Pixel edge from OME-XML, else from the resolution tags with ImageJ's unit, else with the tag's own unit.
[[nodiscard]] std::optional<double> find_pixel_size_um(const TiffFile& file, const Page& page);

}  // namespace cellvision::io
