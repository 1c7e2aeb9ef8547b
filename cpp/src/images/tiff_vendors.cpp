// Whose file a TIFF is: those that Python's tifffile reads by a vendor's rules are known by the same signs.

#include <algorithm>
#include <array>
#include <utility>

#include "images/tiff.hpp"

namespace cellvision::io {

namespace {

constexpr std::array<std::pair<std::uint64_t, std::string_view>, 8> tags{
    {{33445, "Molecular Dynamics GEL"}, {33471, "Olympus SIS"}, {33560, "Olympus SIS"}, {33628, "Metamorph STK"},
     {34362, "Olympus FluoView"}, {34412, "Zeiss LSM"}, {43314, "NIH Image"}, {65420, "Hamamatsu NDPI"}}};

constexpr std::array<std::pair<std::string_view, std::string_view>, 5> softwares{
    {{"PerkinElmer-QPI", "PerkinElmer QPI"}, {"Philips DP", "Philips"}, {"ScanOutputManager", "Ventana BIF"},
     {"Ventana", "Ventana BIF"}, {"SI.", "ScanImage"}}};

}  // namespace

std::string_view find_vendor(const TiffFile& file) {
    if (file.pages().empty()) {
        return {};
    }
    const Page& page = file.pages().front();
    for (const auto& [tag, vendor] : tags) {
        if (std::find(page.private_tags.begin(), page.private_tags.end(), tag) != page.private_tags.end()) {
            return vendor;
        }
    }
    for (const auto& [start, vendor] : softwares) {
        if (page.software.starts_with(start)) {
            return vendor;
        }
    }
    const std::string_view text = page.description;
    const std::string_view trimmed = text.substr(0, text.find_last_not_of(" \t\r\n") + 1);
    return text.starts_with("Aperio ") ? "Aperio SVS" : trimmed.ends_with("</scn>") ? "Leica SCN" : "";
}

}  // namespace cellvision::io
