#include <png.h>

#include <array>
#include <bit>
#include <csetjmp>
#include <cstring>
#include <limits>
#include <string>

#include "cellvision/error.hpp"
#include "images/source.hpp"

namespace cellvision::io {

namespace {

constexpr std::size_t magic_bytes = 8;
constexpr int palette = 3;

std::uint32_t get_u32(const unsigned char* bytes) noexcept {
    return static_cast<std::uint32_t>(bytes[0]) << 24 | static_cast<std::uint32_t>(bytes[1]) << 16 |
           static_cast<std::uint32_t>(bytes[2]) << 8 | bytes[3];
}

/// What libpng reads from and complains to. No C++ object may live across its longjmp, so this holds all of them.
struct Decoder {
    const std::vector<unsigned char>* file = nullptr;
    std::size_t at = 0;
    std::array<char, 200> complaint{};
};

void read_data(png_structp png, png_bytep out, png_size_t size) {
    auto* decoder = static_cast<Decoder*>(png_get_io_ptr(png));
    if (size > decoder->file->size() - decoder->at) {
        png_error(png, "the file ends early");
    }
    std::memcpy(out, decoder->file->data() + decoder->at, size);
    decoder->at += size;
}

void complain(png_structp png, png_const_charp message) {
    auto* decoder = static_cast<Decoder*>(png_get_error_ptr(png));
    std::strncpy(decoder->complaint.data(), message, decoder->complaint.size() - 1);
    png_longjmp(png, 1);
}

void ignore(png_structp /*png*/, png_const_charp /*message*/) {}

/// Decodes into rows of the size that libpng itself says; false after a complaint. C only: see Decoder.
bool decode(Decoder* decoder, bool keep_indices, unsigned char* out, std::size_t row_bytes, std::size_t height) {
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, decoder, complain, ignore);
    png_infop info = png != nullptr ? png_create_info_struct(png) : nullptr;
    if (info == nullptr || setjmp(png_jmpbuf(png)) != 0) {  // NOLINT(cert-err52-cpp): libpng's only way out
        png_destroy_read_struct(&png, &info, nullptr);
        return false;
    }
    png_set_user_limits(png, 0x7fffffff, 0x7fffffff);  // sizes are checked before
    png_set_read_fn(png, decoder, read_data);
    png_read_info(png, info);
    if (keep_indices) {
        png_set_packing(png);
    } else {
        png_set_expand(png);
    }
    if (std::endian::native == std::endian::little) {
        png_set_swap(png);
    }
    const int passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
    if (png_get_rowbytes(png, info) != row_bytes) {
        png_error(png, "its rows are not as long as its header says");
    }
    for (int pass = 0; pass < passes; ++pass) {
        for (std::size_t y = 0; y < height; ++y) {
            png_read_row(png, out + y * row_bytes, nullptr);
        }
    }
    // What comes after the last row is nobody's pixel, so png_read_end is left out.
    png_destroy_read_struct(&png, &info, nullptr);
    return true;
}

class PngSource : public Source {
public:
    explicit PngSource(const std::filesystem::path& path) : Source(path), file_(read_bytes(path)) {
        read_header();
        if (frames_ > 1) {
            refuse(path, "is animated", "one still image", "save the frame you mean as PNG");
        }
        check_upright(path, orientation_);
    }

    Planes read_counts() override {
        Planes planes = decode_planes(header_.channels, false);
        if (bits_ < 8 && colour_type_ == 0) {
            // libpng spreads the stored numbers over 0..255; the first channel is grey, a second one would be alpha.
            const auto step = static_cast<unsigned>(255 / ((1 << bits_) - 1));
            for (std::size_t i = 0; i < planes.pixels(); ++i) {
                planes.data[i] = static_cast<std::byte>(std::to_integer<unsigned>(planes.data[i]) / step);
            }
        }
        return planes;
    }

    Planes read_labels() override { return colour_type_ == palette ? decode_planes(1, true) : read_counts(); }

private:
    void read_header() {
        bool has_transparency = false;
        std::size_t at = magic_bytes;
        for (bool is_first = true;; is_first = false) {
            if (file_.size() < at + 12) {
                fail_decoding(path(), "the file ends in its header");
            }
            const std::size_t length = get_u32(file_.data() + at);
            const std::string_view type(reinterpret_cast<const char*>(file_.data()) + at + 4, 4);
            const unsigned char* data = file_.data() + at + 8;
            if (length > file_.size() - at - 12 || is_first != (type == "IHDR")) {
                fail_decoding(path(), type == "IDAT" ? "the file ends early" : "its header is damaged");
            }
            if (type == "IDAT" || type == "IEND") {
                break;
            }
            if (type == "IHDR" && length == 13) {
                read_size(data);
            } else if (type == "tRNS") {
                has_transparency = true;
            } else if (type == "acTL" && length == 8) {
                frames_ = get_u32(data);
            } else if (type == "eXIf") {
                orientation_ = find_orientation(data, length);
            }
            at += length + 12;
        }
        header_.channels += has_transparency ? 1 : 0;
        header_.has_alpha = colour_type_ == 4 || colour_type_ == 6 || has_transparency;
    }

    void read_size(const unsigned char* data) {
        constexpr std::array<int, 7> channels{1, 0, 3, 3, 2, 0, 4};  // by colour type; a palette becomes colours
        const std::uint32_t width = get_u32(data);
        const std::uint32_t height = get_u32(data + 4);
        bits_ = data[8];
        colour_type_ = data[9];
        constexpr auto most = static_cast<std::uint32_t>(std::numeric_limits<int>::max());
        if (colour_type_ > 6 || channels[static_cast<std::size_t>(colour_type_)] == 0 || width == 0 || height == 0 ||
            width > most || height > most || bits_ == 0 || bits_ > 16 || (bits_ & (bits_ - 1)) != 0) {
            fail_decoding(path(), "its header is damaged");
        }
        header_.channels = channels[static_cast<std::size_t>(colour_type_)];
        header_.height = static_cast<int>(height);
        header_.width = static_cast<int>(width);
        header_.sample = bits_ == 16 ? Sample::u16 : Sample::u8;
    }

    Planes decode_planes(int channels, bool keep_indices) {
        Planes planes = make_planes(header_, channels);
        const std::size_t size = size_of(planes.sample);
        const auto samples = static_cast<std::size_t>(channels);
        const std::size_t row_bytes = static_cast<std::size_t>(planes.width) * samples * size;
        std::vector<std::byte> mixed(row_bytes * static_cast<std::size_t>(planes.height));
        Decoder decoder{.file = &file_};
        if (!decode(&decoder, keep_indices, reinterpret_cast<unsigned char*>(mixed.data()), row_bytes,
                    static_cast<std::size_t>(planes.height))) {
            fail_decoding(path(), decoder.complaint.data());
        }
        if (channels == 1) {
            planes.data = std::move(mixed);
            return planes;
        }
        planes.data.resize(mixed.size());
        for (std::size_t c = 0; c < samples; ++c) {
            std::byte* out = planes.data.data() + c * planes.pixels() * size;
            for (std::size_t i = 0; i < planes.pixels(); ++i) {
                std::memcpy(out + i * size, mixed.data() + (i * samples + c) * size, size);
            }
        }
        return planes;
    }

    std::vector<unsigned char> file_;
    int bits_ = 0;
    int colour_type_ = 0;
    std::uint32_t frames_ = 1;
    int orientation_ = 1;
};

}  // namespace

std::unique_ptr<Source> open_png(const std::filesystem::path& path) { return std::make_unique<PngSource>(path); }

}  // namespace cellvision::io
