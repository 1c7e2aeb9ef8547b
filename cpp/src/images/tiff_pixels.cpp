#include "images/tiff_pixels.hpp"

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace cellvision::io {

namespace {

constexpr std::size_t rows_bytes = 8U << 20;  // of an uncompressed strip, at a time

struct OptionsCloser {
    void operator()(TIFFOpenOptions* options) const { TIFFOpenOptionsFree(options); }
};

/// Keeps the first complaint of libtiff, which would print it.
int keep_complaint(TIFF* /*tiff*/, void* place, const char* /*module*/, const char* format, va_list arguments) {
    auto* text = static_cast<std::string*>(place);
    if (text->empty()) {
        std::array<char, 200> buffer{};
        std::vsnprintf(buffer.data(), buffer.size(), format, arguments);
        *text = buffer.data();
    }
    return 1;
}

int drop_complaint(TIFF* /*tiff*/, void* /*place*/, const char* /*module*/, const char* /*format*/, va_list /*list*/) {
    return 1;
}

/// Copies rows of `stride` pixels, of which `columns` count, to where they belong.
template <typename T>
void scatter(const std::byte* in, std::size_t rows, std::size_t columns, std::size_t stride, std::size_t samples,
             const Layout& to) {
    for (std::size_t y = 0; y < rows; ++y) {
        for (std::size_t s = 0; s < samples; ++s) {
            const std::byte* from = in + (y * stride * samples + s) * sizeof(T);
            std::byte* out = to.out + (to.base + y * to.dy + s * to.ds) * sizeof(T);
            if (samples == 1 && to.dx == 1) {
                std::memcpy(out, from, columns * sizeof(T));
                continue;
            }
            for (std::size_t x = 0; x < columns; ++x) {
                std::memcpy(out + x * to.dx * sizeof(T), from + x * samples * sizeof(T), sizeof(T));
            }
        }
    }
}

/// Numbers of a few bits, packed from the highest bit down, rows padded to whole bytes, as numbers of `size` bytes.
std::vector<std::byte> unpack(const std::vector<std::byte>& packed, std::size_t rows, std::size_t per_row,
                              std::uint32_t bits, std::size_t size) {
    std::vector<std::byte> out(rows * per_row * size);
    const std::size_t row_bytes = (per_row * bits + 7) / 8;
    for (std::size_t y = 0; y < rows; ++y) {
        std::size_t bit = y * row_bytes * 8;
        for (std::size_t i = 0; i < per_row; ++i) {
            std::uint32_t value = 0;
            for (std::uint32_t b = 0; b < bits; ++b, ++bit) {
                value = value << 1 | (std::to_integer<std::uint32_t>(packed[bit / 8]) >> (7 - bit % 8) & 1U);
            }
            const auto narrow = static_cast<std::uint16_t>(value);
            std::byte* place = out.data() + (y * per_row + i) * size;
            if (size == 1) {
                *place = static_cast<std::byte>(value);
            } else if (size == 2) {
                std::memcpy(place, &narrow, 2);
            } else {
                std::memcpy(place, &value, 4);
            }
        }
    }
    return out;
}

}  // namespace

void swap_bytes(std::byte* data, std::size_t count, std::size_t size) {
    for (std::size_t i = 0; i < count; ++i) {
        std::reverse(data + i * size, data + (i + 1) * size);
    }
}

bool PixelReader::is_plain(const Page& page) const noexcept {
    return page.compression == 1 && page.predictor == 1 && page.fill_order == 1 && !page.is_tiled() &&
           page.bits == 8 * size_of(sample_);
}

void PixelReader::fail(const std::string& otherwise) const {
    fail_decoding(file_.path(), complaint_.empty() ? otherwise : complaint_);
}

void PixelReader::read_page(const Page& page, const Layout& to) {
    complaint_.clear();
    const bool plain = is_plain(page);
    const std::size_t rows = page.is_tiled() ? page.tile_height : page.rows_per_strip;
    const std::size_t columns = page.is_tiled() ? page.tile_width : page.width;
    const std::size_t down = (page.height + rows - 1) / rows;
    const std::size_t across = (page.width + columns - 1) / columns;
    if (!plain) {
        open_directory(page);
    }
    for (std::size_t index = 0; index < page.separate() * down * across; ++index) {
        const std::size_t y = index / across % down * rows;
        const std::size_t x = index % across * columns;
        Layout place = to;
        place.base += index / across / down * to.dp + y * to.dy + x * to.dx;
        const std::size_t height = std::min<std::size_t>(rows, page.height - y);
        if (index >= page.offsets.size() || (!plain && index >= page.byte_counts.size())) {
            fail("its table of strips or tiles is too short");
        }
        if (page.offsets[index] == 0 || (!plain && page.byte_counts[index] == 0)) {
            continue;  // left out by the file: all zero
        }
        if (plain) {
            read_plain(page, page.offsets[index], height, place);
        } else {
            const std::size_t width = std::min<std::size_t>(columns, page.width - x);
            read_segment(page, index, {.used = height, .stored = page.is_tiled() ? rows : height},
                         {.used = width, .stored = columns}, place);
        }
    }
}

/// Rows of an uncompressed strip, a few at a time.
void PixelReader::read_plain(const Page& page, std::uint64_t offset, std::size_t height, Layout to) {
    const std::size_t size = size_of(sample_);
    const std::size_t per_row = page.width * page.contiguous();
    const std::size_t step = std::max<std::size_t>(1, rows_bytes / (per_row * size));
    std::vector<std::byte> rows(std::min(step, height) * per_row * size);
    for (std::size_t y = 0; y < height; y += step) {
        const std::size_t count = std::min(step, height - y);
        file_.read(offset + y * per_row * size, rows.data(), count * per_row * size);
        if (size > 1 && !file_.is_native_order()) {
            swap_bytes(rows.data(), count * per_row, size);
        }
        spread(rows.data(), {.used = count, .stored = count}, {.used = page.width, .stored = page.width},
               page.contiguous(), to);
        to.base += count * to.dy;
    }
}

void PixelReader::read_segment(const Page& page, std::size_t index, Extent rows, Extent columns, const Layout& to) {
    const std::size_t samples = page.contiguous();
    std::vector<std::byte> segment(rows.stored * ((columns.stored * samples * page.bits + 7) / 8));
    const auto number = static_cast<std::uint32_t>(index);
    const auto room = static_cast<tmsize_t>(segment.size());
    TIFF* tiff = tiff_.get();
    const tmsize_t expected =
        page.is_tiled() ? TIFFTileSize(tiff) : TIFFVStripSize(tiff, static_cast<std::uint32_t>(rows.stored));
    if (expected != room) {
        fail("its strips or tiles have another size than its header says");
    }
    const tmsize_t got = page.is_tiled() ? TIFFReadEncodedTile(tiff, number, segment.data(), room)
                                         : TIFFReadEncodedStrip(tiff, number, segment.data(), room);
    if (got != room) {
        fail("a strip or tile ends early");
    }
    const std::size_t size = size_of(sample_);
    if (page.bits != 8 * size) {
        segment = unpack(segment, rows.stored, columns.stored * samples, page.bits, size);
    }
    spread(segment.data(), rows, columns, samples, to);
}

void PixelReader::spread(const std::byte* data, Extent rows, Extent columns, std::size_t samples,
                         const Layout& to) const {
    switch (size_of(sample_)) {
        case 1: scatter<std::uint8_t>(data, rows.used, columns.used, columns.stored, samples, to); break;
        case 2: scatter<std::uint16_t>(data, rows.used, columns.used, columns.stored, samples, to); break;
        case 4: scatter<std::uint32_t>(data, rows.used, columns.used, columns.stored, samples, to); break;
        default: scatter<std::uint64_t>(data, rows.used, columns.used, columns.stored, samples, to); break;
    }
}

/// libtiff at this page, for what is compressed or packed.
void PixelReader::open_directory(const Page& page) {
    if (!tiff_) {
        const std::unique_ptr<TIFFOpenOptions, OptionsCloser> options(TIFFOpenOptionsAlloc());
        TIFFOpenOptionsSetErrorHandlerExtR(options.get(), keep_complaint, &complaint_);
        TIFFOpenOptionsSetWarningHandlerExtR(options.get(), drop_complaint, nullptr);
        // h: no directory is read yet; m: no mapping, which another program's cut would turn into a crash.
        tiff_.reset(TIFFOpenExt(file_.path().c_str(), "rhm", options.get()));
    }
    if (!tiff_ || TIFFSetSubDirectory(tiff_.get(), page.offset) == 0) {
        fail("its directory is damaged");
    }
    if (page.compression == jpeg_compression && page.photometric == PHOTOMETRIC_YCBCR) {
        TIFFSetField(tiff_.get(), TIFFTAG_JPEGCOLORMODE, JPEGCOLORMODE_RGB);
    }
}

}  // namespace cellvision::io
