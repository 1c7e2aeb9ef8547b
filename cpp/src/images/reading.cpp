#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <utility>

#include "cellvision/error.hpp"
#include "cellvision/image_io.hpp"
#include "images/source.hpp"

namespace cellvision {

namespace {

using io::Planes;
using io::Sample;
using std::filesystem::path;
using namespace std::string_view_literals;

constexpr double max_exact = 16777216.0;  // 2**24: float32 holds every whole number up to this
constexpr double max_label = 2147483647.0;

/// Calls `use` with a null pointer of the C++ type of a sample; float16 comes as its bits, std::uint16_t.
template <typename Use>
auto with_type(Sample sample, Use use) {
    switch (sample) {
        case Sample::boolean:
        case Sample::u8: return use(static_cast<std::uint8_t*>(nullptr));
        case Sample::u16: return use(static_cast<std::uint16_t*>(nullptr));
        case Sample::u32: return use(static_cast<std::uint32_t*>(nullptr));
        case Sample::u64: return use(static_cast<std::uint64_t*>(nullptr));
        case Sample::i8: return use(static_cast<std::int8_t*>(nullptr));
        case Sample::i16: return use(static_cast<std::int16_t*>(nullptr));
        case Sample::i32: return use(static_cast<std::int32_t*>(nullptr));
        case Sample::i64: return use(static_cast<std::int64_t*>(nullptr));
        case Sample::f16: return use(static_cast<std::uint16_t*>(nullptr));
        case Sample::f32: return use(static_cast<float*>(nullptr));
        case Sample::f64: break;
    }
    return use(static_cast<double*>(nullptr));
}

/// Calls `see(index, value as double, value as stored)` for all samples of planes.
template <typename See>
void for_each(const Planes& planes, std::size_t first, std::size_t count, See see) {
    with_type(planes.sample, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        for (std::size_t i = first; i < first + count; ++i) {
            T value;
            std::memcpy(&value, planes.data.data() + i * sizeof(T), sizeof(T));
            if constexpr (std::is_same_v<T, std::uint16_t>) {
                if (planes.sample == Sample::f16) {
                    see(i, static_cast<double>(io::to_float(value)));
                    continue;
                }
            }
            see(i, static_cast<double>(value));
        }
    });
}

std::unique_ptr<io::Source> open_source(const path& file) {
    std::array<char, 32> start{};
    std::error_code ignored;
    std::ifstream stream(file, std::ios::binary);
    if (std::filesystem::is_directory(file, ignored) || !stream) {
        const bool is_folder = std::filesystem::is_directory(file, ignored);
        const std::string reason = " cannot be opened (" + std::string(std::strerror(errno)) + ")";
        fail(ErrorKind::data, file.string() + (is_folder ? " is a folder" : reason), "an image file", "check the path");
    }
    stream.read(start.data(), start.size());
    const std::string_view bytes(start.data(), static_cast<std::size_t>(stream.gcount()));
    if (bytes.starts_with("\x89PNG\r\n\x1a\n")) {
        return io::open_png(file);
    }
    if (bytes.starts_with("\xff\xd8\xff")) {
        return io::open_jpeg(file);
    }
    const std::string_view four = bytes.substr(0, 4);
    if (four == "II*\0"sv || four == "MM\0*"sv || four == "II+\0"sv || four == "MM\0+"sv) {
        return io::open_tiff(file);
    }
    constexpr std::array<std::pair<std::string_view, std::string_view>, 10> known{
        {{"%PDF", "a PDF"}, {"GIF8", "a GIF"}, {"BM", "a BMP"}, {"RIFF", "a WebP or AVI"}, {"<", "XML or SVG"},
         {"PK", "a zip archive"}, {"\x89HDF", "HDF5"}, {"ZISRAW", "Zeiss CZI"}, {"\xda\xce\xbe\x0a", "Nikon ND2"},
         {"version https://git-lfs", "a Git LFS pointer"}}};
    std::string_view what = bytes.empty() ? "an empty file" : "no image";
    for (const auto& [magic, kind] : known) {
        what = bytes.starts_with(magic) ? kind : what;
    }
    fail(ErrorKind::data, file.string() + " is " + std::string(what), "TIFF, PNG or JPEG", "export the image again");
}

DType find_dtype(Sample sample) noexcept {
    switch (sample) {
        case Sample::boolean:
        case Sample::u8: return DType::uint8;
        case Sample::u16: return DType::uint16;
        default: return DType::float32;
    }
}

void drop_alpha(const path& file, Planes& planes) {
    double opaque = 1.0;
    if (planes.sample != Sample::boolean && !io::is_float(planes.sample)) {
        opaque = with_type(planes.sample, [](auto* type) {
            return static_cast<double>(std::numeric_limits<std::remove_pointer_t<decltype(type)>>::max());
        });
    }
    std::uint64_t seen = 0;
    const std::size_t first = planes.pixels() * static_cast<std::size_t>(planes.channels - 1);
    for_each(planes, first, planes.pixels(), [&](std::size_t, double value) { seen += value != opaque ? 1U : 0U; });
    if (seen > 0) {
        io::refuse(file, "has an alpha channel that is not opaque at " + std::to_string(seen) + " pixels",
                   "no alpha, or opaque everywhere",
                   "drop it, or save the stains as photometric=\"minisblack\" if it is one of them");
    }
    --planes.channels;
    planes.data.resize(first * io::size_of(planes.sample));
}

void check_finite(const path& file, const Planes& planes) {
    std::uint64_t bad = 0;
    for_each(planes, 0, planes.data.size() / io::size_of(planes.sample),
             [&](std::size_t, double value) { bad += std::isfinite(value) ? 0U : 1U; });
    if (bad > 0) {
        fail(ErrorKind::data, file.string() + " holds " + std::to_string(bad) + " NaN or infinite values",
             "finite counts", "replace them first");
    }
}

std::vector<std::byte> to_float32(const path& file, const Planes& planes) {
    const std::size_t count = planes.data.size() / io::size_of(planes.sample);
    std::vector<std::byte> result(count * sizeof(float));
    const bool is_float = io::is_float(planes.sample);
    std::uint64_t lost = 0;
    for_each(planes, 0, count, [&](std::size_t i, double value) {
        const bool fits = std::abs(value) <= static_cast<double>(std::numeric_limits<float>::max());
        const float converted = fits ? static_cast<float>(value) : 0.0F;
        lost += (is_float ? static_cast<double>(converted) != value : std::abs(value) > max_exact) ? 1U : 0U;
        std::memcpy(result.data() + i * sizeof(float), &converted, sizeof(float));
    });
    if (lost > 0) {
        io::refuse(file, "holds " + std::to_string(lost) + " " + std::string(io::to_name(planes.sample)) +
                             " values that float32 cannot hold",
                   "values that fit float32 exactly", "save it as uint16 or float32");
    }
    return result;
}

ImageInfo to_info(const io::Header& header) {
    return {.channels = header.channels - (header.has_alpha ? 1 : 0),
            .height = header.height,
            .width = header.width,
            .dtype = find_dtype(header.sample),
            .channel_names = header.channel_names,
            .pixel_size_um = header.pixel_size_um};
}

std::uint64_t count_samples(const io::Header& header) {
    return static_cast<std::uint64_t>(header.channels) * static_cast<std::uint64_t>(header.height) *
           static_cast<std::uint64_t>(header.width);
}

}  // namespace

ImageInfo read_info(const path& file) {
    const std::unique_ptr<io::Source> source = open_source(file);
    source->check_image();
    return to_info(source->header());
}

Image read_image(const path& file, std::optional<std::uint64_t> max_samples) {
    const std::unique_ptr<io::Source> source = open_source(file);
    source->check_image();
    io::check_size(file, count_samples(source->header()), max_samples);
    Planes planes = source->read_counts();
    if (source->header().has_alpha) {
        drop_alpha(file, planes);
    }
    if (io::is_float(planes.sample)) {
        check_finite(file, planes);
    }
    const ImageInfo info = to_info(source->header());
    Image image;
    image.channels = planes.channels;
    image.height = planes.height;
    image.width = planes.width;
    image.dtype = info.dtype;
    image.channel_names = info.channel_names;
    image.pixel_size_um = info.pixel_size_um;
    image.name = file.filename().string();
    const bool is_kept = info.dtype != DType::float32 || planes.sample == Sample::f32;
    image.data = is_kept ? std::move(planes.data) : to_float32(file, planes);
    return image;
}

LabelImage read_label_image(const path& file) {
    const std::unique_ptr<io::Source> source = open_source(file);
    io::check_size(file, count_samples(source->header()), std::nullopt);
    const Planes planes = source->read_labels();
    if (planes.channels != 1) {
        io::refuse(file, "is a label image of " + std::to_string(planes.channels) + " channels", "one channel",
                   "save labels as 16-bit grey");
    }
    bool has_fractions = false;
    double low = std::numeric_limits<double>::infinity();
    double high = -low;
    LabelImage labels(planes.height, planes.width);
    for_each(planes, 0, planes.pixels(), [&](std::size_t i, double value) {
        has_fractions = has_fractions || !(value == std::trunc(value));
        low = std::min(low, value);
        high = std::max(high, value);
        labels.data[i] = value >= 0.0 && value <= max_label ? static_cast<std::int32_t>(value) : 0;
    });
    if (has_fractions) {
        io::refuse(file, "is a label image with fractions", "whole numbers", "save labels as 16-bit grey");
    }
    if (!(low >= 0.0 && high <= max_label)) {
        io::refuse(file, "holds labels below 0 or above 2147483647", "0 to 2147483647",
                   "number the cells from 1 upwards");
    }
    return labels;
}

std::string image_stem(const path& file) {
    const path stem = file.stem();
    std::string ending = stem.extension().string();
    std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
    return ending == ".ome" ? stem.stem().string() : stem.string();
}

std::vector<path> list_images(const path& folder) {
    constexpr std::array<std::string_view, 5> endings{".tif", ".tiff", ".png", ".jpg", ".jpeg"};
    if (!std::filesystem::is_directory(folder)) {
        fail(ErrorKind::data, folder.string() + " is no folder", "a folder with images", "check the path");
    }
    std::vector<path> images;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        std::string ending = entry.path().extension().string();
        std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
        const bool is_hidden = entry.path().filename().string().starts_with(".");
        if (!is_hidden && std::find(endings.begin(), endings.end(), ending) != endings.end()) {
            images.push_back(entry.path());
        }
    }
    if (images.empty()) {
        fail(ErrorKind::data, folder.string() + " has no images", "at least one of .tif, .tiff, .png, .jpg, .jpeg",
             "another folder");
    }
    std::sort(images.begin(), images.end(), [](const path& a, const path& b) { return a.filename() < b.filename(); });
    return images;
}

}  // namespace cellvision
