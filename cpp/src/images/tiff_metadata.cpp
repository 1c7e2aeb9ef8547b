#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>

#include "images/tiff.hpp"
#include "images/xml.hpp"

namespace cellvision::io {

namespace {

// Coarser pixels than a 1x objective gives are print resolutions (72 to 1200 dots per inch), not measurements.
constexpr double largest_pixel_um = 10.0;
constexpr double smallest_pixel_um = 1e-4;
constexpr double same_size = 0.01;

std::string trim(std::string_view text) {
    constexpr const char* spaces = " \t\r\n";
    const std::size_t first = std::min(text.find_first_not_of(spaces), text.size());
    return std::string(text.substr(first, text.find_last_not_of(spaces) + 1 - first));
}

std::optional<double> find_um_per_unit(const std::string& unit) {
    constexpr std::array<std::pair<std::string_view, double>, 13> known{
        {{"um", 1.0}, {"\u00b5m", 1.0}, {"\u03bcm", 1.0}, {"micron", 1.0}, {"microns", 1.0}, {"micrometer", 1.0},
         {"micrometre", 1.0}, {"nm", 1e-3}, {"mm", 1e3}, {"cm", 1e4}, {"m", 1e6}, {"inch", 25400.0},
         {"inches", 25400.0}}};
    const auto* found = std::find_if(known.begin(), known.end(), [&](const auto& pair) { return pair.first == unit; });
    return found == known.end() ? std::nullopt : std::optional(found->second);
}

std::optional<double> to_um(std::optional<double> size, const std::string& unit) {
    const auto scale = find_um_per_unit(unit);
    if (!size || !scale) {
        return std::nullopt;
    }
    const double size_um = *size * *scale;
    return size_um >= smallest_pixel_um && size_um <= largest_pixel_um ? std::optional(size_um) : std::nullopt;
}

std::optional<double> agree(std::optional<double> x, std::optional<double> y) {
    if (!x || !y) {
        return x ? x : y;
    }
    return std::abs(*x - *y) <= same_size * std::max(*x, *y) ? x : std::nullopt;
}

std::optional<double> to_double(const std::optional<std::string>& text) {
    if (!text) {
        return std::nullopt;
    }
    const std::string number = trim(*text);
    double value = 0.0;
    const auto result = std::from_chars(number.data(), number.data() + number.size(), value);
    const bool is_number = result.ec == std::errc() && result.ptr == number.data() + number.size();
    return is_number ? std::optional(value) : std::nullopt;
}

std::optional<XmlElement> find_pixels(const TiffFile& file) {
    if (!is_ome(file)) {
        return std::nullopt;
    }
    const auto root = parse_xml(file.pages().front().description);
    const XmlElement* pixels = root ? root->find_first("Pixels") : nullptr;
    return pixels != nullptr ? std::optional(*pixels) : std::nullopt;
}

}  // namespace

std::string find_imagej_note(const TiffFile& file, const std::string& key) {
    if (file.pages().empty()) {
        return {};
    }
    const Page& page = file.pages().front();
    for (const std::string& text : {page.description, page.second_description}) {
        if (!text.starts_with("ImageJ=") && !text.starts_with("SCIFIO=")) {
            continue;
        }
        for (std::size_t at = 0; at < text.size();) {
            const std::size_t end = std::min(text.find('\n', at), text.size());
            const std::string_view line = std::string_view(text).substr(at, end - at);
            if (line.starts_with(key + "=")) {
                return trim(line.substr(key.size() + 1));
            }
            at = end + 1;
        }
        return {};
    }
    return {};
}

std::vector<std::string> find_channel_names(const TiffFile& file, int channels) {
    std::vector<std::string> names;
    if (const auto pixels = find_pixels(file)) {
        for (const XmlElement& child : pixels->children) {
            if (child.name == "Channel") {
                names.push_back(trim(child.find("Name").value_or("")));
            }
        }
    }
    const bool has_all = names.size() == static_cast<std::size_t>(channels) &&
                         std::none_of(names.begin(), names.end(), [](const std::string& name) { return name.empty(); });
    return has_all ? names : std::vector<std::string>{};
}

std::optional<double> find_pixel_size_um(const TiffFile& file, const Page& page) {
    if (const auto pixels = find_pixels(file)) {
        const auto get = [&](const std::string& axis) {
            return to_um(to_double(pixels->find("PhysicalSize" + axis)),
                         pixels->find("PhysicalSize" + axis + "Unit").value_or("um"));
        };
        return agree(get("X"), get("Y"));
    }
    std::string unit = find_imagej_note(file, "unit");
    if (unit.empty()) {
        unit = page.resolution_unit == 2 ? "inch" : page.resolution_unit == 3 ? "cm" : "";
    }
    constexpr std::string_view escaped = "\\u00B5";  // as ImageJ writes the micro sign
    if (const std::size_t at = unit.find(escaped); at != std::string::npos) {
        unit.replace(at, escaped.size(), "\u00b5");
    } else if (unit.starts_with("\xb5")) {  // in its older releases
        unit.replace(0, 1, "\u00b5");
    }
    for (char& letter : unit) {
        letter = letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
    }
    return agree(to_um(page.units_per_pixel_x, unit), to_um(page.units_per_pixel_y, unit));
}

}  // namespace cellvision::io
