#include "files/legend.hpp"

#include <algorithm>
#include <cstdint>

namespace cellvision {
namespace {

constexpr int glyph_width = 5, glyph_height = 7;
constexpr int legend_px = 640;  // a legend is as wide as its picture, or at most this where the picture is narrower
constexpr int gap_px = 12;

// From the space to the tilde: rows of 5 pixels from the top, the leftmost the highest bit; an empty box stands for
// letters that no name of a class is likely to have.
constexpr std::array<std::uint64_t, 95> glyphs = {
    0x000000000, 0x7e318c63f, 0x7e318c63f, 0x295f57d4a, 0x7e318c63f, 0x632222263, 0x32544564d, 0x108800000,
    0x088842082, 0x208210888, 0x009575480, 0x0084f9080, 0x000003088, 0x000070000, 0x00000018c, 0x042222210,
    0x3a33ae62e, 0x11842108e, 0x3a213221f, 0x7c447062e, 0x08ca97c42, 0x7e1e0862e, 0x1910f462e, 0x7c2211084,
    0x3a317462e, 0x3a317844c, 0x018c03180, 0x7e318c63f, 0x088882082, 0x001f07c00, 0x208208888, 0x7e318c63f,
    0x7e318c63f, 0x3a31fc631, 0x7a31f463e, 0x3a308422e, 0x72518c65c, 0x7e10f421f, 0x7e10f4210, 0x3a30bc62f,
    0x4631fc631, 0x38842108e, 0x1c4210a4c, 0x4654c5251, 0x42108421f, 0x4775ac631, 0x4739ace71, 0x3a318c62e,
    0x7a31f4210, 0x3a318d64d, 0x7a31f5251, 0x3e107043e, 0x7c8421084, 0x46318c62e, 0x46318a944, 0x4631ad771,
    0x462a22a31, 0x462a21084, 0x7c222221f, 0x7e318c63f, 0x7e318c63f, 0x7e318c63f, 0x7e318c63f, 0x00000001f,
    0x7e318c63f, 0x000e0be2f, 0x421e8c63e, 0x000f8420f, 0x042f8c62f, 0x000e8fe0e, 0x191c42108, 0x01f18bc2e,
    0x4216cc631, 0x100c2108e, 0x080610a4c, 0x4212a6292, 0x30842108e, 0x001aad6b5, 0x0016cc631, 0x000e8c62e,
    0x03d18fa10, 0x01f18bc21, 0x0016cc210, 0x000f8383e, 0x211c42126, 0x00118c66d, 0x00118c544, 0x00118d6aa,
    0x001151151, 0x02318bc2e, 0x001f1111f, 0x7e318c63f, 0x7e318c63f, 0x7e318c63f, 0x7e318c63f};

/// The letters, one byte for each: a box for all beyond ASCII.
std::string to_letters(const std::string& text) {
    std::string letters;
    for (const char letter : text) {
        const auto byte = static_cast<unsigned char>(letter);
        if (byte < 0x80 || byte >= 0xC0) {  // further bytes of one letter are left out
            letters.push_back(byte >= 0x20 && byte < 0x7F ? letter : '!');
        }
    }
    return letters;
}

std::string shorten(const std::string& letters, std::size_t most) {
    if (letters.size() <= most) {
        return letters;
    }
    const std::size_t kept = most - std::min<std::size_t>(3, most);
    return letters.substr(0, kept - kept / 2) + "..." + letters.substr(letters.size() - kept / 2);
}

void write(Picture& picture, const std::string& letters, int left, int top, int scale, Colour colour) {
    for (const char letter : letters) {
        const std::uint64_t glyph = glyphs[static_cast<std::size_t>(letter - ' ')];
        for (int y = 0; y < glyph_height * scale; ++y) {
            for (int x = 0; x < glyph_width * scale; ++x) {
                const int bit = glyph_width * (glyph_height - 1 - y / scale) + glyph_width - 1 - x / scale;
                if ((glyph >> bit & 1U) != 0) {
                    const auto at = static_cast<std::ptrdiff_t>(top + y) * picture.width + left + x;
                    std::copy(colour.begin(), colour.end(), picture.rgb.begin() + 3 * at);
                }
            }
        }
        left += (glyph_width + 1) * scale;
    }
}

}  // namespace

Picture add_legend(const Picture& picture, const std::vector<LegendPart>& parts) {
    struct Place {
        std::string letters;
        int left;
        int top;
        Colour colour;
    };
    const int scale = std::max(2, picture.width / 500);
    const int letter_px = (glyph_width + 1) * scale;
    const int line_px = glyph_height * scale + 8;
    const int most = std::max(picture.width, legend_px);
    std::vector<Place> places;
    int left = gap_px;
    int top = picture.height;
    int widest = picture.width;
    for (const LegendPart& part : parts) {
        const std::string letters =
            shorten(to_letters(part.text), static_cast<std::size_t>((most - 2 * gap_px) / letter_px));
        const int length = static_cast<int>(letters.size()) * letter_px + gap_px;
        if (left > gap_px && left + length > most) {
            left = gap_px;
            top += line_px;
        }
        places.push_back({letters, left, top + 4, part.colour});
        left += length;
        widest = std::max(widest, left);
    }
    Picture whole{.height = top + line_px, .width = widest, .rgb = {}};
    whole.rgb.resize(static_cast<std::size_t>(whole.height) * static_cast<std::size_t>(whole.width) * 3);
    for (int y = 0; y < picture.height; ++y) {
        const std::ptrdiff_t row = std::ptrdiff_t{3} * y;
        std::copy_n(picture.rgb.begin() + row * picture.width, 3 * picture.width, whole.rgb.begin() + row * widest);
    }
    for (const Place& place : places) {
        write(whole, place.letters, place.left, place.top, scale, place.colour);
    }
    return whole;
}

}  // namespace cellvision
