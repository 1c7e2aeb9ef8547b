#include "images/tiff.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "cellvision/error.hpp"
#include "images/tiff_pixels.hpp"

namespace cellvision::io {

namespace {

constexpr std::uint64_t largest_segment = 1U << 24;  // samples of a tile, where the image is smaller
constexpr std::uint64_t largest_guessed_channels = 16;

class TiffSource : public Source {
public:
    explicit TiffSource(const std::filesystem::path& path) : Source(path), file_(path) {
        series_ = choose_series();
        find_channels();
        const Page& page = key();
        check_page(page);
        for (const Page* each : series_.pages) {
            if (each == nullptr) {
                refuse(path, "lacks planes that its OME-XML lists", "all planes in one file", "export it again");
            }
            if (each->shape() != page.shape() || each->sample() != page.sample()) {
                fail_decoding(path, "its pages differ");
            }
        }
        header_.sample = *page.sample();
        header_.has_alpha = header_.channels > 1 && !page.extra_samples.empty() &&
                            (page.extra_samples.back() == 1 || page.extra_samples.back() == 2);
        header_.channel_names = find_channel_names(file_, header_.channels - (header_.has_alpha ? 1 : 0));
        header_.pixel_size_um = find_pixel_size_um(file_, page);
    }

    void check_image() const override {
        const Page& page = key();
        const bool is_lookup = page.photometric == PHOTOMETRIC_PALETTE && is_imagej(file_);  // counts, shown in colours
        if (page.photometric == PHOTOMETRIC_MINISBLACK || page.photometric == PHOTOMETRIC_RGB || is_lookup ||
            (page.photometric == PHOTOMETRIC_YCBCR && page.compression == jpeg_compression)) {
            return;
        }
        const std::string name = page.photometric == PHOTOMETRIC_MINISWHITE ? "MINISWHITE"
                                 : page.photometric == PHOTOMETRIC_PALETTE  ? "PALETTE"
                                                                            : std::to_string(page.photometric);
        refuse(path(), "stores its pixels as " + name, "grey (MINISBLACK) or RGB", "save it as grey or RGB TIFF");
    }

    Planes read_counts() override {
        Planes planes = make_planes(header_, header_.channels);
        const Page& page = key();
        const std::size_t pixels = planes.pixels();
        const std::size_t size = size_of(planes.sample);
        const std::size_t per_page = page.separate() * page.contiguous();
        planes.data.resize(pixels * static_cast<std::size_t>(planes.channels) * size);
        const bool has_whole_planes = page.height == static_cast<std::uint32_t>(planes.height) &&
                                      page.width == static_cast<std::uint32_t>(planes.width) &&
                                      series_.pages.size() * per_page == static_cast<std::size_t>(planes.channels);
        if (has_whole_planes && !series_.is_contiguous) {
            const auto width = static_cast<std::size_t>(planes.width);
            PixelReader reader(file_, planes.sample);
            for (std::size_t i = 0; i < series_.pages.size(); ++i) {
                const std::size_t base = i * per_page * pixels;
                reader.read_page(*series_.pages[i], {.out = planes.data.data(), .base = base, .dp = pixels, .dy = width,
                                                     .dx = 1, .ds = pixels});
            }
            return planes;
        }
        return move_channels(read_stored(), std::move(planes));
    }

    Planes read_labels() override {
        if (key().compression == jpeg_compression) {
            refuse(path(), "is a label image in JPEG, which changes the labels", "another compression",
                   "export it as PNG");
        }
        return read_counts();
    }

private:
    [[nodiscard]] const Page& key() const {
        return **std::find_if(series_.pages.begin(), series_.pages.end(), [](const Page* p) { return p != nullptr; });
    }

    Series choose_series() const {
        if (const std::string_view vendor = find_vendor(file_); !vendor.empty()) {
            refuse(path(), "is a file of " + std::string(vendor) + ", whose numbers may mean something else",
                   "plain TIFF, OME-TIFF or ImageJ's", "export it as OME-TIFF, e.g. in Fiji");
        }
        std::vector<Series> every = find_series(file_);
        if (every.empty()) {
            fail(ErrorKind::data, path().string() + " has no page", "an undamaged TIFF", "copy it again");
        }
        if (every.size() > 1) {
            refuse(path(), "holds " + std::to_string(every.size()) + " images", "one per file",
                   "export each on its own");
        }
        if (is_ome(file_) && every.front().kind != "ome") {
            refuse(path(), "has OME-XML that does not fit its pages", "all planes in one file", "export it again");
        }
        return std::move(every.front());
    }

    void find_channels() {
        std::string axes;
        Shape shape;
        for (std::size_t i = 0; i < series_.axes.size(); ++i) {
            const char letter = series_.axes[i];
            if (series_.shape[i] != 1 || letter == 'Y' || letter == 'X') {
                axes.push_back(letter);
                shape.push_back(series_.shape[i]);
            }
        }
        for (std::size_t i = 0; i < axes.size(); ++i) {
            if (axes[i] == 'Z' || axes[i] == 'T') {
                const std::string what = axes[i] == 'Z' ? "is a z-stack of " : "is a time series of ";
                refuse(path(), what + std::to_string(shape[i]), "one plane per channel", "project or split it first");
            }
        }
        if (axes == "YX") {
            shape.insert(shape.begin(), 1);
            channel_axis_ = 0;
        } else {
            channel_axis_ = find_channel_axis(axes, shape);
            std::rotate(shape.begin(), shape.begin() + channel_axis_, shape.begin() + channel_axis_ + 1);
        }
        constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<int>::max());
        if (std::any_of(shape.begin(), shape.end(), [](std::uint64_t n) { return n < 1 || n > most; })) {
            fail(ErrorKind::data, path().string() + " is " + describe(shape), "at least 1x1 px", "save it again");
        }
        header_.channels = static_cast<int>(shape[0]);
        header_.height = static_cast<int>(shape[1]);
        header_.width = static_cast<int>(shape[2]);
    }

    /// Of three axes, two of which are Y and X, or may be.
    [[nodiscard]] std::ptrdiff_t find_channel_axis(const std::string& axes, const Shape& shape) const {
        if (axes.size() != 3 || axes.find('X') == std::string::npos || axes.find('Y') == std::string::npos) {
            refuse(path(), "has the axes " + axes + " " + describe(shape), "channels, y and x", "export one plane");
        }
        const std::size_t other = axes.find_first_not_of("YX");
        if (axes[other] == 'C' || axes[other] == 'S') {
            return static_cast<std::ptrdiff_t>(other);
        }
        const auto smallest = std::min_element(shape.begin(), shape.end());
        const std::ptrdiff_t place = smallest - shape.begin();
        const bool is_one = std::count(shape.begin(), shape.end(), *smallest) == 1;
        if (is_one && place != 1 && *smallest <= largest_guessed_channels) {
            return place;
        }
        refuse(path(), "is " + describe(shape) + " without names for its axes",
               "channels first or last, at most 16, or named axes", "save it as OME-TIFF with axes CYX");
    }

    static std::string describe(const Shape& shape) {
        std::string text;
        for (const std::uint64_t length : shape) {
            text += (text.empty() ? "(" : ", ") + std::to_string(length);
        }
        return text + ")";
    }

    void check_page(const Page& page) const {
        if (!page.sample()) {
            refuse(path(), "holds numbers of " + std::to_string(page.bits) + " bits in format " +
                               std::to_string(page.sample_format), "integers or floats", "save it as float32");
        }
        constexpr std::array<std::uint32_t, 8> known{1, 5, jpeg_compression, 8, 32773, 32946, 34925, 50000};
        if (std::find(known.begin(), known.end(), page.compression) == known.end() ||
            TIFFIsCODECConfigured(static_cast<std::uint16_t>(page.compression)) == 0) {
            refuse(path(), "is compressed by method " + std::to_string(page.compression),
                   "none, LZW, deflate, Zstd or JPEG", "save it with deflate");
        }
        if (page.depth > 1 || page.tile_depth > 1) {
            refuse(path(), "holds volumes", "one plane per channel", "project or split it first");
        }
        if (page.orientation != 1) {
            refuse(path(), "is turned (orientation " + std::to_string(page.orientation) + ")", "orientation 1",
                   "save it upright");
        }
        const std::uint64_t rows = page.is_tiled() ? page.tile_height : page.rows_per_strip;
        const std::uint64_t segment = rows * (page.is_tiled() ? page.tile_width : page.width) * page.contiguous();
        const auto height = static_cast<std::uint64_t>(header_.height);
        const std::uint64_t whole = static_cast<std::uint64_t>(header_.channels) * height *
                                    static_cast<std::uint64_t>(header_.width);
        if (rows == 0 || segment > std::max(largest_segment, 4 * whole)) {
            fail(ErrorKind::data, path().string() + " has tiles of " + std::to_string(segment) + " samples",
                 "tiles no larger than the image or " + std::to_string(largest_segment) + " samples",
                 "save it with tiles of 256x256");
        }
    }

    /// All samples in the order of the file's pages.
    [[nodiscard]] std::vector<std::byte> read_stored() {
        const std::size_t size = size_of(header_.sample);
        const std::size_t total = multiply(series_.shape);
        const Page& page = key();
        std::vector<std::byte> stored(total * size);
        if (series_.is_contiguous) {
            file_.read(page.offsets.front(), stored.data(), stored.size());
            if (!file_.is_native_order()) {
                swap_bytes(stored.data(), total, size);
            }
            return stored;
        }
        const std::size_t contiguous = page.contiguous();
        const std::size_t row = page.width * contiguous;
        const std::size_t plane = page.height * row;
        const std::size_t per_page = plane * page.separate();
        if (series_.pages.size() * per_page < total) {
            fail_decoding(path(), "pages are missing");
        }
        PixelReader reader(file_, header_.sample);
        for (std::size_t i = 0; (i + 1) * per_page <= total; ++i) {
            reader.read_page(*series_.pages[i], {.out = stored.data(), .base = i * per_page, .dp = plane, .dy = row,
                                                 .dx = contiguous, .ds = 1});
        }
        return stored;
    }

    /// Planes from samples whose axes are in the file's order.
    [[nodiscard]] Planes move_channels(std::vector<std::byte> stored, Planes planes) const {
        const auto channels = static_cast<std::size_t>(planes.channels);
        if (channel_axis_ == 0) {
            planes.data = std::move(stored);
            return planes;
        }
        const std::size_t size = size_of(planes.sample);
        const auto height = static_cast<std::size_t>(planes.height);
        const auto width = static_cast<std::size_t>(planes.width);
        for (std::size_t c = 0; c < channels; ++c) {
            for (std::size_t y = 0; y < height; ++y) {
                for (std::size_t x = 0; x < width; ++x) {
                    const std::size_t from = channel_axis_ == 2 ? (y * width + x) * channels + c
                                                                : (y * channels + c) * width + x;
                    const std::size_t to = (c * height + y) * width + x;
                    std::memcpy(planes.data.data() + to * size, stored.data() + from * size, size);
                }
            }
        }
        return planes;
    }

    TiffFile file_;
    Series series_;
    std::ptrdiff_t channel_axis_ = 0;
};

}  // namespace

std::unique_ptr<Source> open_tiff(const std::filesystem::path& path) { return std::make_unique<TiffSource>(path); }

}  // namespace cellvision::io
