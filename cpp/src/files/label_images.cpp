#include <png.h>
#include <tiffio.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "cellvision/error.hpp"
#include "cellvision/writers.hpp"

namespace cellvision {

namespace {

constexpr int rows_per_strip = 64;
constexpr std::size_t classic_tiff_bytes = (1ULL << 32) - (1ULL << 26);  // its offsets are 32 bits wide

[[noreturn]] void fail_writing(const std::filesystem::path& path) {
    fail(ErrorKind::config, path.string() + " cannot be written to its end", "room on the disk", "another folder");
}

int drop_complaint(TIFF* /*tiff*/, void* /*place*/, const char* /*module*/, const char* /*format*/, va_list /*list*/) {
    return 1;  // the error is raised where it is seen, in our words
}

struct TiffCloser {
    void operator()(TIFF* tiff) const { TIFFClose(tiff); }
};
using TiffHandle = std::unique_ptr<TIFF, TiffCloser>;

TiffHandle create_tiff(const std::filesystem::path& path, bool is_large) {
    TIFFOpenOptions* options = TIFFOpenOptionsAlloc();
    TIFFOpenOptionsSetErrorHandlerExtR(options, drop_complaint, nullptr);
    TIFFOpenOptionsSetWarningHandlerExtR(options, drop_complaint, nullptr);
    TiffHandle tiff(TIFFOpenExt(path.c_str(), is_large ? "wl8" : "wl", options));
    TIFFOpenOptionsFree(options);
    if (!tiff) {
        fail_writing(path);
    }
    return tiff;
}

template <typename T>
void write_strips(TIFF* tiff, const std::filesystem::path& path, const LabelImage& labels) {
    const auto width = static_cast<std::size_t>(labels.width);
    std::vector<T> strip(rows_per_strip * width);
    for (int top = 0; top < labels.height; top += rows_per_strip) {
        const std::size_t count = static_cast<std::size_t>(std::min(rows_per_strip, labels.height - top)) * width;
        const std::int32_t* from = labels.row(top);
        std::transform(from, from + count, strip.begin(), [](std::int32_t n) { return static_cast<T>(n); });
        const auto number = static_cast<std::uint32_t>(top / rows_per_strip);
        if (TIFFWriteEncodedStrip(tiff, number, strip.data(), static_cast<tmsize_t>(count * sizeof(T))) < 0) {
            fail_writing(path);
        }
    }
}

}  // namespace

void write_label_image(const std::filesystem::path& path, const LabelImage& labels,
                       std::optional<double> pixel_size_um) {
    const auto fits = [](std::int32_t label) { return label < 1 << 16; };
    const bool is_small = std::all_of(labels.data.begin(), labels.data.end(), fits);
    const std::size_t bytes = labels.data.size() * (is_small ? 2 : 4);
    TiffHandle tiff = create_tiff(path, bytes > classic_tiff_bytes);
    TIFFSetField(tiff.get(), TIFFTAG_IMAGEWIDTH, static_cast<std::uint32_t>(labels.width));
    TIFFSetField(tiff.get(), TIFFTAG_IMAGELENGTH, static_cast<std::uint32_t>(labels.height));
    TIFFSetField(tiff.get(), TIFFTAG_BITSPERSAMPLE, is_small ? 16 : 32);
    TIFFSetField(tiff.get(), TIFFTAG_SAMPLESPERPIXEL, 1);
    TIFFSetField(tiff.get(), TIFFTAG_SAMPLEFORMAT, SAMPLEFORMAT_UINT);
    TIFFSetField(tiff.get(), TIFFTAG_COMPRESSION, COMPRESSION_ADOBE_DEFLATE);
    TIFFSetField(tiff.get(), TIFFTAG_PHOTOMETRIC, PHOTOMETRIC_MINISBLACK);
    TIFFSetField(tiff.get(), TIFFTAG_PLANARCONFIG, PLANARCONFIG_CONTIG);
    TIFFSetField(tiff.get(), TIFFTAG_ROWSPERSTRIP, std::min(rows_per_strip, labels.height));
    TIFFSetField(tiff.get(), TIFFTAG_SOFTWARE, "cellvision");
    const double px_per_cm = pixel_size_um ? 1e4 / *pixel_size_um : 1.0;
    TIFFSetField(tiff.get(), TIFFTAG_XRESOLUTION, px_per_cm);
    TIFFSetField(tiff.get(), TIFFTAG_YRESOLUTION, px_per_cm);
    TIFFSetField(tiff.get(), TIFFTAG_RESOLUTIONUNIT, pixel_size_um ? RESUNIT_CENTIMETER : RESUNIT_NONE);
    if (is_small) {
        write_strips<std::uint16_t>(tiff.get(), path, labels);
    } else {
        write_strips<std::uint32_t>(tiff.get(), path, labels);
    }
    if (TIFFFlush(tiff.get()) == 0) {
        fail_writing(path);
    }
}

void write_png(const std::filesystem::path& path, const std::vector<unsigned char>& rgb, int height, int width) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(width);
    image.height = static_cast<png_uint_32>(height);
    image.format = PNG_FORMAT_RGB;
    image.flags = PNG_IMAGE_FLAG_FAST;  // without filters: a quarter of the time, and outlines come out smaller too
    if (png_image_write_to_file(&image, path.c_str(), 0, rgb.data(), 0, nullptr) == 0) {
        fail_writing(path);
    }
}

}  // namespace cellvision
