#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "cellvision/error.hpp"
#include "images/tiff.hpp"

namespace cellvision::io {

namespace {

constexpr std::size_t most_pages = 1U << 15;
constexpr std::uint64_t most_tags = 4096;
constexpr std::uint64_t first_private_tag = 32768;

std::size_t find_type_size(std::uint64_t type) noexcept {
    constexpr std::array<std::size_t, 19> sizes{0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8};
    return type < sizes.size() ? sizes[type] : 0;
}

std::uint32_t cut(std::uint64_t value) noexcept {
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(value, 0xFFFFFFFFU));
}

std::optional<Sample> find_unsigned(std::uint32_t bits) noexcept {
    if (bits == 1) {
        return Sample::boolean;
    }
    if (bits <= 8) {
        return Sample::u8;
    }
    if (bits <= 16) {
        return Sample::u16;
    }
    return bits <= 32 ? std::optional(Sample::u32) : bits == 64 ? std::optional(Sample::u64) : std::nullopt;
}

}  // namespace

std::uint64_t multiply(const Shape& shape) noexcept {
    std::uint64_t product = 1;
    for (const std::uint64_t length : shape) {
        if (length != 0 && product > (1ULL << 62) / length) {
            return 0;
        }
        product *= length;
    }
    return product;
}

Shape Page::shape() const {
    if (!has_samples_axis()) {
        return {height, width};
    }
    return planar == 1 ? Shape{height, width, samples} : Shape{samples, height, width};
}

std::string Page::axes() const { return !has_samples_axis() ? "YX" : planar == 1 ? "YXS" : "SYX"; }

std::optional<Sample> Page::sample() const {
    if (has_uneven_samples || bits == 0) {
        return std::nullopt;
    }
    switch (sample_format) {
        case 1:
        case 4: return find_unsigned(bits);
        case 2:
            return bits == 8    ? std::optional(Sample::i8)
                   : bits == 16 ? std::optional(Sample::i16)
                   : bits == 32 ? std::optional(Sample::i32)
                   : bits == 64 ? std::optional(Sample::i64)
                                : std::nullopt;
        case 3:
            return bits == 16   ? std::optional(Sample::f16)
                   : bits == 32 ? std::optional(Sample::f32)
                   : bits == 64 ? std::optional(Sample::f64)
                                : std::nullopt;
        default: return std::nullopt;
    }
}

bool Page::is_final() const {
    const bool is_whole = bits == 8 || bits == 16 || bits == 32 || bits == 64;
    if (compression != 1 || !is_whole || is_tiled() || offsets.empty() || fill_order != 1 || predictor != 1) {
        return false;
    }
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
        if (i >= byte_counts.size() || byte_counts[i] == 0 || offsets[i] + byte_counts[i] != offsets[i + 1]) {
            return false;
        }
    }
    return true;
}

bool Page::is_alike(const Page& other) const {
    const auto facts = [](const Page& p) {
        return std::tuple(p.width, p.height, p.depth, p.tile_width, p.tile_height, p.rows_per_strip, p.bits,
                          p.sample_format, p.compression, p.photometric, p.samples, p.planar, p.predictor,
                          p.fill_order);
    };
    return facts(*this) == facts(other) && extra_samples == other.extra_samples;
}

struct TiffFile::Entry {
    std::uint64_t tag = 0;
    std::uint64_t type = 0;
    std::uint64_t count = 0;
    std::array<std::byte, 8> inside{};  ///< the values, or where they are
};

TiffFile::TiffFile(const std::filesystem::path& path) : path_(path), stream_(path, std::ios::binary) {
    size_ = std::filesystem::file_size(path);
    std::array<std::byte, 16> head{};
    read(0, head.data(), std::min<std::uint64_t>(size_, head.size()));
    is_little_ = head[0] == std::byte{'I'};
    is_big_tiff_ = get(head.data() + 2, 2) == 43;
    std::uint64_t offset = is_big_tiff_ ? get(head.data() + 8, 8) : get(head.data() + 4, 4);
    std::vector<std::uint64_t> seen;
    while (offset != 0) {
        if (pages_.size() > most_pages || std::binary_search(seen.begin(), seen.end(), offset)) {
            refuse(path_, "has over 32768 pages, or they go round in a circle", "one field",
                   "export one field per file");
        }
        seen.insert(std::lower_bound(seen.begin(), seen.end(), offset), offset);
        pages_.push_back(read_page(offset));
        offset = pages_.back().next;
    }
}

bool TiffFile::is_native_order() const noexcept { return is_little_ == (std::endian::native == std::endian::little); }

void TiffFile::read(std::uint64_t offset, std::byte* out, std::uint64_t count) const {
    if (offset > size_ || count > size_ - offset) {
        const std::uint64_t missing = offset > size_ ? count : count - (size_ - offset);
        fail(ErrorKind::data, path_.string() + " ends " + std::to_string(missing) + " bytes early", "a complete file",
             "copy or export the file again");
    }
    stream_.clear();
    stream_.seekg(static_cast<std::streamoff>(offset));
    stream_.read(reinterpret_cast<char*>(out), static_cast<std::streamsize>(count));
    if (!stream_) {
        fail_decoding(path_, "it cannot be read");
    }
}

std::uint64_t TiffFile::get(const std::byte* bytes, std::size_t count) const noexcept {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < count; ++i) {
        value = value << 8 | std::to_integer<std::uint64_t>(bytes[is_little_ ? count - 1 - i : i]);
    }
    return value;
}

Page TiffFile::read_page(std::uint64_t offset) const {
    const std::size_t head_size = is_big_tiff_ ? 8 : 2;
    const std::size_t word = is_big_tiff_ ? 8 : 4;
    const std::size_t entry_size = 4 + 2 * word;
    std::array<std::byte, 8> head{};
    read(offset, head.data(), head_size);
    const std::uint64_t tags = get(head.data(), head_size);
    if (tags == 0 || tags > most_tags) {
        fail_decoding(path_, "a directory with " + std::to_string(tags) + " tags");
    }
    std::vector<std::byte> bytes(tags * entry_size);
    read(offset + head_size, bytes.data(), bytes.size());
    Page page;
    page.offset = offset;
    bool has_description = false;
    for (std::size_t i = 0; i < tags; ++i) {
        const std::byte* at = bytes.data() + i * entry_size;
        Entry entry{.tag = get(at, 2), .type = get(at + 2, 2), .count = get(at + 4, word), .inside = {}};
        std::copy_n(at + 4 + word, word, entry.inside.begin());
        read_entry(entry, page, &has_description);
    }
    page.rows_per_strip = page.rows_per_strip == 0 ? page.height : std::min(page.rows_per_strip, page.height);
    const std::uint64_t after = offset + head_size + bytes.size();
    if (after + word <= size_) {  // a file may end with its last directory's tags
        read(after, head.data(), word);
        page.next = get(head.data(), word);
    }
    return page;
}

std::vector<std::byte> TiffFile::read_values(const Entry& entry) const {
    const std::size_t size = find_type_size(entry.type);
    const std::size_t word = is_big_tiff_ ? 8 : 4;
    if (size == 0 || entry.count > size_ / size) {
        return {};  // an odd tag does not spoil the others
    }
    std::vector<std::byte> values(entry.count * size);
    if (values.size() <= word) {
        std::copy_n(entry.inside.begin(), values.size(), values.begin());
        return values;
    }
    const std::uint64_t offset = get(entry.inside.data(), word);
    if (offset > size_ || values.size() > size_ - offset) {
        return {};
    }
    read(offset, values.data(), values.size());
    return values;
}

std::vector<std::uint64_t> TiffFile::read_numbers(const Entry& entry) const {
    const std::size_t size = find_type_size(entry.type);
    const std::vector<std::byte> values = read_values(entry);
    std::vector<std::uint64_t> numbers;
    if (size == 0 || entry.type == 5 || entry.type == 10 || entry.type == 11 || entry.type == 12) {
        return numbers;
    }
    numbers.reserve(values.size() / size);
    for (std::size_t at = 0; at + size <= values.size(); at += size) {
        numbers.push_back(get(values.data() + at, size));
    }
    return numbers;
}

std::string TiffFile::read_text(const Entry& entry) const {
    const std::vector<std::byte> values = read_values(entry);
    std::string text(reinterpret_cast<const char*>(values.data()), values.size());
    text.resize(std::min(text.size(), text.find_last_not_of('\0') + 1));
    return text;
}

std::optional<double> TiffFile::read_inverse(const Entry& entry) const {
    const std::vector<std::byte> values = read_values(entry);
    if (entry.type != 5 || values.size() != 8) {
        return std::nullopt;
    }
    const auto pixels = static_cast<double>(get(values.data(), 4));
    const auto units = static_cast<double>(get(values.data() + 4, 4));
    return pixels > 0.0 && units > 0.0 ? std::optional(units / pixels) : std::nullopt;
}

void TiffFile::read_entry(const Entry& entry, Page& page, bool* has_description) const {
    const auto set_one = [&](std::uint32_t& field) {
        if (const auto numbers = read_numbers(entry); !numbers.empty()) {
            field = cut(numbers.front());
        }
    };
    const auto set_even = [&](std::uint32_t& field) {
        if (const auto numbers = read_numbers(entry); !numbers.empty()) {
            field = cut(numbers.front());
            const auto differs = [&](std::uint64_t number) { return number != numbers.front(); };
            page.has_uneven_samples = page.has_uneven_samples || std::any_of(numbers.begin(), numbers.end(), differs);
        }
    };
    switch (entry.tag) {
        case 254: set_one(page.subfile_type); break;
        case 256: set_one(page.width); break;
        case 257: set_one(page.height); break;
        case 258: set_even(page.bits); break;
        case 259: set_one(page.compression); break;
        case 262: set_one(page.photometric); break;
        case 266: set_one(page.fill_order); break;
        case 270: {
            (*has_description ? page.second_description : page.description) = read_text(entry);
            *has_description = true;
            break;
        }
        case 273:
        case 324: page.offsets = read_numbers(entry); break;
        case 274: set_one(page.orientation); break;
        case 277: set_one(page.samples); break;
        case 278: set_one(page.rows_per_strip); break;
        case 279:
        case 325: page.byte_counts = read_numbers(entry); break;
        case 282: page.units_per_pixel_x = read_inverse(entry); break;
        case 283: page.units_per_pixel_y = read_inverse(entry); break;
        case 284: set_one(page.planar); break;
        case 296: set_one(page.resolution_unit); break;
        case 305: page.software = read_text(entry); break;
        case 317: set_one(page.predictor); break;
        case 322: set_one(page.tile_width); break;
        case 323: set_one(page.tile_height); break;
        case 338:
            for (const std::uint64_t number : read_numbers(entry)) {
                page.extra_samples.push_back(cut(number));
            }
            break;
        case 339: set_even(page.sample_format); break;
        case 32997: set_one(page.depth); break;
        case 32998: set_one(page.tile_depth); break;
        default:
            if (entry.tag >= first_private_tag) {
                page.private_tags.push_back(entry.tag);
            }
    }
}

}  // namespace cellvision::io
