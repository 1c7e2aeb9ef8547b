#include <cstddef>
#include <cstdio>

#include <jpeglib.h>

#include <jerror.h>

#include <array>
#include <csetjmp>
#include <cstring>
#include <string>

#include "images/source.hpp"

namespace cellvision::io {

namespace {

constexpr std::string_view exif_start("Exif\0\0", 6);
constexpr unsigned largest_marker = 0xFFFF;

/// libjpeg's view of an error. No C++ object may live across its longjmp.
struct Complaints {
    jpeg_error_mgr base;  // first, so that a pointer to it is a pointer to this
    std::jmp_buf way_out;
    std::array<char, JMSG_LENGTH_MAX> text;
};

void give_up(j_common_ptr jpeg) {
    auto* complaints = reinterpret_cast<Complaints*>(jpeg->err);
    jpeg->err->format_message(jpeg, complaints->text.data());
    std::longjmp(complaints->way_out, 1);
}

void note(j_common_ptr jpeg, int level) {
    // Damage inside the data is decoded around, as all viewers do; a file that ends early is not whole, nor is one whose
    // data does, before an end marker that was put there all the same.
    const int code = jpeg->err->msg_code;
    const bool hits_end =
        code == JWRN_HIT_MARKER && reinterpret_cast<j_decompress_ptr>(jpeg)->unread_marker == JPEG_EOI;
    if (level < 0 && (code == JWRN_JPEG_EOF || hits_end)) {
        give_up(jpeg);
    }
}

/// The header's facts, in plain C.
struct JpegHeader {
    int components;
    unsigned height;
    unsigned width;
    int orientation;
};

bool start(jpeg_decompress_struct* jpeg, Complaints* complaints, const unsigned char* file, std::size_t size) {
    jpeg->err = jpeg_std_error(&complaints->base);
    complaints->base.error_exit = give_up;
    complaints->base.emit_message = note;
    if (setjmp(complaints->way_out) != 0) {  // NOLINT(cert-err52-cpp): libjpeg's only way out
        jpeg_destroy_decompress(jpeg);
        return false;
    }
    jpeg_create_decompress(jpeg);
    jpeg_mem_src(jpeg, file, static_cast<unsigned long>(size));
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, largest_marker);
    jpeg_read_header(jpeg, TRUE);
    return true;
}

int find_marked_orientation(const jpeg_decompress_struct& jpeg) {
    for (const jpeg_marker_struct* marker = jpeg.marker_list; marker != nullptr; marker = marker->next) {
        const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
        if (data.starts_with(exif_start)) {
            return find_orientation(marker->data + exif_start.size(), data.size() - exif_start.size());
        }
    }
    return 1;
}

bool read_header(Complaints* complaints, const std::vector<unsigned char>& file, JpegHeader* header) {
    jpeg_decompress_struct jpeg{};
    if (!start(&jpeg, complaints, file.data(), file.size())) {
        return false;
    }
    *header = {.components = jpeg.num_components,
               .height = jpeg.image_height,
               .width = jpeg.image_width,
               .orientation = find_marked_orientation(jpeg)};
    jpeg_destroy_decompress(&jpeg);
    return true;
}

/// Decodes rows of `row_bytes` into `out`; false after a complaint.
bool decode(Complaints* complaints, const unsigned char* file, std::size_t size, unsigned char* out,
            std::size_t row_bytes) {
    jpeg_decompress_struct jpeg{};
    if (!start(&jpeg, complaints, file, size)) {
        return false;
    }
    if (setjmp(complaints->way_out) != 0) {  // NOLINT(cert-err52-cpp)
        jpeg_destroy_decompress(&jpeg);
        return false;
    }
    jpeg.out_color_space = jpeg.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_start_decompress(&jpeg);
    while (jpeg.output_scanline < jpeg.output_height) {
        JSAMPROW row = out + jpeg.output_scanline * row_bytes;
        jpeg_read_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_decompress(&jpeg);
    jpeg_destroy_decompress(&jpeg);
    return true;
}

class JpegSource : public Source {
public:
    explicit JpegSource(const std::filesystem::path& path) : Source(path), file_(read_bytes(path)) {
        Complaints complaints{};
        JpegHeader found{};
        if (!read_header(&complaints, file_, &found)) {
            fail_decoding(path, complaints.text.data());
        }
        if (found.components != 1 && found.components != 3) {
            refuse(path, found.components == 4 ? "is a CMYK JPEG" : "is a JPEG of odd colours", "grey or RGB",
                   "convert it to RGB and save as PNG");
        }
        check_upright(path, found.orientation);
        header_.channels = found.components;
        header_.height = static_cast<int>(found.height);
        header_.width = static_cast<int>(found.width);
        header_.sample = Sample::u8;
    }

    Planes read_counts() override {
        Planes planes = make_planes(header_, header_.channels);
        const auto samples = static_cast<std::size_t>(planes.channels);
        std::vector<unsigned char> mixed(planes.pixels() * samples);
        Complaints complaints{};
        const std::size_t row_bytes = static_cast<std::size_t>(planes.width) * samples;
        if (!decode(&complaints, file_.data(), file_.size(), mixed.data(), row_bytes)) {
            fail_decoding(path(), complaints.text.data());
        }
        planes.data.resize(mixed.size());
        for (std::size_t c = 0; c < samples; ++c) {
            std::byte* out = planes.data.data() + c * planes.pixels();
            for (std::size_t i = 0; i < planes.pixels(); ++i) {
                out[i] = static_cast<std::byte>(mixed[i * samples + c]);
            }
        }
        return planes;
    }

    Planes read_labels() override {
        refuse(path(), "is a label image in JPEG, which changes the labels", "PNG or TIFF", "export it as PNG");
    }

private:
    std::vector<unsigned char> file_;
};

}  // namespace

std::unique_ptr<Source> open_jpeg(const std::filesystem::path& path) { return std::make_unique<JpegSource>(path); }

}  // namespace cellvision::io
