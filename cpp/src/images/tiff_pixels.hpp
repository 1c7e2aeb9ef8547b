#pragma once

#include <tiffio.h>

#include <cstddef>
#include <memory>
#include <string>

#include "images/tiff.hpp"

namespace cellvision::io {

constexpr std::uint32_t jpeg_compression = 7;

/// Where a page's samples go: sample s of pixel (y, x) of a plane to base + plane * dp + y * dy + x * dx + s * ds.
struct Layout {
    std::byte* out;
    std::size_t base, dp, dy, dx, ds;
};

/// Reverses the bytes of `count` numbers of `size` bytes.
void swap_bytes(std::byte* data, std::size_t count, std::size_t size);

/// Decodes the strips and tiles of a TIFF file's pages, one at a time: by itself where the numbers lie in the file as
/// they are, else by libtiff.
class PixelReader {
public:
    PixelReader(const TiffFile& file, Sample sample) : file_(file), sample_(sample) {}

    /// Puts all samples of a page, of the type given at the start, into their places; those that the file leaves out
    /// stay as they are. Throws Error where the file is damaged.
    void read_page(const Page& page, const Layout& to);

private:
    struct Extent {
        std::size_t used;    ///< inside the image
        std::size_t stored;  ///< with the padding of a tile
    };
    struct TiffCloser {
        void operator()(TIFF* tiff) const { TIFFClose(tiff); }
    };

    [[nodiscard]] bool is_plain(const Page& page) const noexcept;
    void read_plain(const Page& page, std::uint64_t offset, std::size_t height, Layout to);
    void read_segment(const Page& page, std::size_t index, Extent rows, Extent columns, const Layout& to);
    void spread(const std::byte* data, Extent rows, Extent columns, std::size_t samples, const Layout& to) const;
    void open_directory(const Page& page);
    [[noreturn]] void fail(const std::string& otherwise) const;

    const TiffFile& file_;
    Sample sample_;
    std::string complaint_;  ///< libtiff's first; outlives the handle that writes to it
    std::unique_ptr<TIFF, TiffCloser> tiff_;
};

}  // namespace cellvision::io
