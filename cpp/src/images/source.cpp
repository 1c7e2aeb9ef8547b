#include "images/source.hpp"

#include <algorithm>
#include <bit>
#include <fstream>

#include "cellvision/error.hpp"

namespace cellvision::io {

namespace {

constexpr std::uint64_t largest_read = 1ULL << 31;         // samples
constexpr std::uint64_t unsuspicious_samples = 1ULL << 28;  // an empty field may compress as well as it likes
constexpr std::uint64_t suspicious_ratio = 500;             // samples per byte of the file
constexpr int exif_orientation = 0x0112;

}  // namespace

std::size_t size_of(Sample sample) noexcept {
    switch (sample) {
        case Sample::boolean:
        case Sample::u8:
        case Sample::i8: return 1;
        case Sample::u16:
        case Sample::i16:
        case Sample::f16: return 2;
        case Sample::u32:
        case Sample::i32:
        case Sample::f32: return 4;
        default: return 8;
    }
}

std::string_view to_name(Sample sample) noexcept {
    switch (sample) {
        case Sample::boolean: return "bool";
        case Sample::u8: return "uint8";
        case Sample::u16: return "uint16";
        case Sample::u32: return "uint32";
        case Sample::u64: return "uint64";
        case Sample::i8: return "int8";
        case Sample::i16: return "int16";
        case Sample::i32: return "int32";
        case Sample::i64: return "int64";
        case Sample::f16: return "float16";
        case Sample::f32: return "float32";
        default: return "float64";
    }
}

Planes make_planes(const Header& header, int channels) {
    return {.channels = channels, .height = header.height, .width = header.width, .sample = header.sample, .data = {}};
}

bool is_float(Sample sample) noexcept {
    return sample == Sample::f16 || sample == Sample::f32 || sample == Sample::f64;
}

void check_size(const std::filesystem::path& path, std::uint64_t samples, std::optional<std::uint64_t> max_samples) {
    const std::uint64_t limit = max_samples.value_or(largest_read);
    if (samples > limit) {
        fail(ErrorKind::data, path.string() + " holds " + std::to_string(samples) + " samples (pixels x channels)",
             "at most " + std::to_string(limit) + " in one read", "cut it into smaller images");
    }
    const std::uint64_t bytes = std::filesystem::file_size(path);
    if (!max_samples && samples > std::max(unsuspicious_samples, suspicious_ratio * bytes)) {
        fail(ErrorKind::data,
             path.string() + " claims " + std::to_string(samples) + " samples in " + std::to_string(bytes) + " bytes",
             "at least a byte per " + std::to_string(suspicious_ratio) + " samples, or it may be a decompression bomb",
             "save it without compression if you trust it");
    }
}

void refuse(const std::filesystem::path& path, std::string_view what, std::string_view need, std::string_view hint) {
    fail(ErrorKind::data, path.string() + " " + std::string(what) + "; unsupported", need, hint);
}

void fail_decoding(const std::filesystem::path& path, std::string_view why) {
    std::string got = path.string() + " cannot be decoded (" + std::string(why) + ")";
    got.resize(std::min<std::size_t>(got.size(), 400));
    fail(ErrorKind::data, got, "an undamaged image file", "copy or export the file again");
}

std::vector<unsigned char> read_bytes(const std::filesystem::path& path) {
    std::ifstream stream(path, std::ios::binary);
    std::vector<unsigned char> bytes(static_cast<std::size_t>(std::filesystem::file_size(path)));
    stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!stream) {
        fail_decoding(path, "it cannot be read to its end");
    }
    return bytes;
}

int find_orientation(const unsigned char* exif, std::size_t size) noexcept {
    if (size < 14 || !((exif[0] == 'I' && exif[1] == 'I') || (exif[0] == 'M' && exif[1] == 'M'))) {
        return 1;
    }
    const bool is_little = exif[0] == 'I';
    const auto get = [&](std::size_t at, std::size_t bytes) {
        std::uint32_t value = 0;
        for (std::size_t i = 0; i < bytes; ++i) {
            value = value << 8 | exif[at + (is_little ? bytes - 1 - i : i)];
        }
        return value;
    };
    const std::size_t directory = get(4, 4);
    if (directory > size - 2) {
        return 1;
    }
    const std::size_t entries = get(directory, 2);
    for (std::size_t i = 0; i < entries && directory + 2 + 12 * (i + 1) <= size; ++i) {
        const std::size_t entry = directory + 2 + 12 * i;
        if (get(entry, 2) == exif_orientation) {
            return static_cast<int>(get(entry + 8, 2));
        }
    }
    return 1;
}

void check_upright(const std::filesystem::path& path, int orientation) {
    if (orientation != 1) {
        refuse(path, "is turned by its EXIF orientation " + std::to_string(orientation), "orientation 1",
               "save it upright as PNG");
    }
}

float to_float(std::uint16_t half) noexcept {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
    const std::uint32_t exponent = half >> 10 & 0x1FU;
    const std::uint32_t fraction = half & 0x3FFU;
    if (exponent == 31) {
        return std::bit_cast<float>(sign | 0x7F800000U | fraction << 13);
    }
    if (exponent == 0) {  // subnormal: fraction * 2**-24
        const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8F;
        return sign != 0 ? -magnitude : magnitude;
    }
    return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

}  // namespace cellvision::io
