#include <algorithm>
#include <iterator>

#include "images/tiff.hpp"
#include "images/xml.hpp"

namespace cellvision::io {

namespace {

/// One Image of OME-XML while its planes are collected.
struct OmeImage {
    std::string axes;  ///< slowest first
    Shape shape;
    std::uint64_t samples = 1;
    std::vector<const Page*> pages;
};

std::uint64_t get_number(const XmlElement& element, std::string_view key, std::uint64_t other) {
    const auto text = element.find(key);
    return text ? to_number(*text).value_or(other) : other;
}

std::optional<OmeImage> start_ome_image(const XmlElement& pixels) {
    OmeImage image;
    image.axes = pixels.find("DimensionOrder").value_or("");
    std::reverse(image.axes.begin(), image.axes.end());
    if (image.axes.size() != 5 || !image.axes.ends_with("YX")) {
        return std::nullopt;
    }
    for (const char axis : image.axes) {
        image.shape.push_back(get_number(pixels, std::string("Size") + axis, 0));
    }
    for (const XmlElement& child : pixels.children) {
        if (child.name == "Channel") {
            image.samples = std::max<std::uint64_t>(1, get_number(child, "SamplesPerPixel", 1));
            image.shape[image.axes.find('C')] /= image.samples;
            break;
        }
    }
    const std::uint64_t planes = multiply({image.shape[0], image.shape[1], image.shape[2]});
    return planes == 0 || planes > most_planes ? std::nullopt : std::optional(image);
}

/// Takes in one TiffData element; false where it names another file.
bool add_tiff_data(const TiffFile& file, const XmlElement& data, std::optional<std::string>& own_uuid,
                   OmeImage& image) {
    std::uint64_t place = 0;
    for (std::size_t i = 0; i < 3; ++i) {
        const std::uint64_t index = get_number(data, std::string("First") + image.axes[i], 0);
        if (index >= image.shape[i]) {
            return true;  // ImageJ writes such when it crops
        }
        place = place * image.shape[i] + index;
    }
    for (const XmlElement& uuid : data.children) {
        if (uuid.name != "UUID") {
            continue;
        }
        if (!own_uuid && uuid.find("FileName") == file.path().filename().string()) {
            own_uuid = uuid.text;
        } else if (!own_uuid || uuid.text != *own_uuid) {
            return false;
        }
        break;
    }
    const std::uint64_t first = get_number(data, "IFD", 0);
    const std::uint64_t usual = get_number(data, "NumPlanes", data.find("IFD") ? 1 : 0);
    const std::uint64_t planes = get_number(data, "PlaneCount", usual);
    const std::uint64_t count = std::min<std::uint64_t>(planes == 0 ? file.pages().size() : planes, most_planes);
    if (image.pages.size() < place + count) {
        image.pages.resize(place + count, nullptr);
    }
    for (std::uint64_t i = 0; i < count && first + i < file.pages().size(); ++i) {
        image.pages[place + i] = &file.pages()[first + i];
    }
    return true;
}

std::optional<Series> finish_ome_image(OmeImage image) {
    const auto found = std::find_if(image.pages.begin(), image.pages.end(), [](const Page* p) { return p != nullptr; });
    if (found == image.pages.end()) {
        return std::nullopt;
    }
    const Page& page = **found;
    if (image.samples > 1) {
        const std::ptrdiff_t back = page.planar == 1 ? 0 : 2;
        image.shape.insert(image.shape.end() - back, image.samples);
        image.axes.insert(image.axes.end() - back, 'S');
    }
    const std::uint64_t page_size = multiply(page.shape());
    const std::uint64_t size = page_size == 0 ? 0 : std::max<std::uint64_t>(1, multiply(image.shape) / page_size);
    Shape squeezed = image.shape;
    Shape own = page.shape();
    std::erase(squeezed, 1U);
    std::erase(own, 1U);
    if (size == 0 || size > most_planes || squeezed.size() < own.size() ||
        !std::equal(own.rbegin(), own.rend(), squeezed.rbegin())) {
        return std::nullopt;
    }
    image.pages.resize(size, nullptr);
    return Series{.kind = "ome", .pages = image.pages, .axes = image.axes, .shape = image.shape};
}

}  // namespace

std::vector<Series> find_ome_series(const TiffFile& file) {
    const auto root = parse_xml(file.pages().front().description);
    if (!root) {
        return {};
    }
    std::optional<std::string> own_uuid = root->find("UUID");
    std::vector<Series> every;
    for (const XmlElement& element : root->children) {
        const auto pixels = std::find_if(element.children.begin(), element.children.end(),
                                         [](const XmlElement& child) { return child.name == "Pixels"; });
        if (element.name != "Image" || pixels == element.children.end()) {
            continue;
        }
        auto image = start_ome_image(*pixels);
        if (!image) {
            continue;
        }
        for (const XmlElement& data : pixels->children) {
            if (data.name == "TiffData" && !add_tiff_data(file, data, own_uuid, *image)) {
                return {};
            }
        }
        if (auto series = finish_ome_image(std::move(*image))) {
            every.push_back(std::move(*series));
        }
    }
    return every;
}

}  // namespace cellvision::io
