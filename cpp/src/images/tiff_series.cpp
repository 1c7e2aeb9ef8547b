// Which directories of a TIFF file are the planes of one image, and what its axes mean: the rules of Python's tifffile,
// written anew, for plain files, its own "shaped" files, OME-TIFF and ImageJ.

#include <algorithm>
#include <charconv>

#include <nlohmann/json.hpp>

#include "images/tiff.hpp"

namespace cellvision::io {

std::optional<std::uint64_t> to_number(std::string_view text) {
    std::uint64_t number = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), number);
    const bool is_whole = !text.empty() && result.ec == std::errc() && result.ptr == text.data() + text.size();
    return is_whole && number <= largest_axis ? std::optional(number) : std::nullopt;
}

namespace {

std::string find_shaped_description(const Page& page) {
    for (const std::string& text : {page.description, page.second_description}) {
        if (text.find("\"mibi.") == std::string::npos &&
            ((text.starts_with("{") && text.find("\"shape\":") != std::string::npos) || text.starts_with("shape="))) {
            return text;
        }
    }
    return {};
}

/// What tifffile notes about an array: its shape, and a letter for each axis where it knows them.
struct Notes {
    Shape shape;
    std::string axes;
    bool is_truncated = false;
};

std::optional<Notes> parse_notes(const std::string& text) {
    Notes notes;
    const bool is_old = text.starts_with("shape=(");
    const std::string json = is_old ? "{\"shape\": [" + text.substr(7, text.find(')') - 7) + "]}" : text;
    const auto record = nlohmann::json::parse(json, nullptr, false);
    if (!record.is_object() || !record.contains("shape") || !record["shape"].is_array()) {
        return std::nullopt;
    }
    for (const auto& length : record["shape"]) {
        if (!length.is_number_unsigned() || length.get<std::uint64_t>() > largest_axis) {
            return std::nullopt;
        }
        notes.shape.push_back(length.get<std::uint64_t>());
    }
    if (record.contains("axes") && record["axes"].is_string()) {
        notes.axes = record["axes"].get<std::string>();
        notes.axes = notes.axes.size() == notes.shape.size() ? notes.axes : "";
    }
    notes.is_truncated = record.contains("truncated") && record["truncated"] == true;
    return notes;
}

/// Whether pages of `page` tile a series of `series` without remainder.
bool fits(const Shape& page, const Shape& series) {
    const std::uint64_t page_size = multiply(page);
    const std::uint64_t series_size = multiply(series);
    if (page_size == 0 || series_size == 0 || series_size % page_size != 0) {
        return false;
    }
    std::size_t used = 0;
    std::uint64_t page_product = 1;
    std::uint64_t series_product = 1;
    for (auto i = page.rbegin(); i != page.rend(); ++i) {
        page_product *= *i;
        while (used < series.size()) {
            const std::uint64_t length = series[series.size() - 1 - used];
            ++used;
            series_product *= length;
            if (*i == length || page_product == series_product) {
                break;
            }
            if (length != 1 && page_product != series_product) {
                return false;
            }
        }
    }
    return true;
}

/// Letters for the axes of `wanted`, from those of `shape`; Q where an axis was split or joined.
std::string reshape_axes(const std::string& axes, const Shape& shape, Shape wanted) {
    const std::size_t padding = shape.size() > wanted.size() ? shape.size() - wanted.size() : 0;
    wanted.insert(wanted.end(), padding, 1);
    std::string letters;
    std::size_t left = shape.size();
    std::uint64_t wanted_product = 1;
    std::uint64_t product = 1;
    for (auto length = wanted.rbegin(); length != wanted.rend(); ++length) {
        wanted_product *= *length;
        while (left > 1 && shape[left - 1] == 1 && *length != 1) {
            --left;
        }
        if (left > 0 && *length == shape[left - 1] && wanted_product == product * shape[left - 1]) {
            product *= shape[left - 1];
            letters.push_back(axes[--left]);
        } else {
            letters.push_back('Q');
        }
    }
    std::reverse(letters.begin(), letters.end());
    letters.resize(letters.size() - padding);
    return letters;
}

Series build_shaped(std::vector<const Page*> pages, const Notes& notes) {
    const Page& page = *pages.front();
    Series series{.kind = "shaped", .pages = std::move(pages), .axes = notes.axes, .shape = notes.shape};
    Shape wanted = notes.shape;
    if (const bool is_wrong = !fits(page.shape(), notes.shape); is_wrong || notes.axes.empty()) {
        series.shape = page.shape();
        series.axes = page.axes();
        if (series.pages.size() > 1) {
            series.shape.insert(series.shape.begin(), series.pages.size());
            series.axes.insert(0, "Q");
        }
        wanted = is_wrong ? series.shape : wanted;
    }
    const std::uint64_t size = multiply(series.shape);
    const std::uint64_t whole = multiply(wanted);
    if (page.is_final() && size > 0 && whole > size && whole % size == 0) {
        series.shape.insert(series.shape.begin(), whole / size);
        series.axes.insert(0, "Q");
    }
    series.is_contiguous = page.is_final() && series.pages.size() == 1 && whole > multiply(page.shape());
    if (multiply(series.shape) == multiply(wanted)) {
        series.axes = reshape_axes(series.axes, series.shape, wanted);
        series.shape = wanted;
    }
    return series;
}

std::vector<Series> find_shaped(const TiffFile& file) {
    std::vector<Series> every;
    const auto& pages = file.pages();
    for (std::size_t index = 0; index < pages.size();) {
        const Page& page = pages[index];
        const auto notes = parse_notes(find_shaped_description(page));
        const std::uint64_t page_size = multiply(page.shape());
        if (!notes || page_size == 0 || multiply(notes->shape) % page_size != 0) {
            return {};
        }
        const std::uint64_t count = std::max<std::uint64_t>(1, multiply(notes->shape) / page_size);
        std::vector<const Page*> own{&page};
        if (!notes->is_truncated && count <= pages.size() - index) {
            for (std::size_t i = 1; i < count; ++i) {
                own.push_back(&pages[index + i]);
            }
        }
        index += notes->is_truncated ? 1 : count;
        every.push_back(build_shaped(std::move(own), *notes));
    }
    return every;
}

std::vector<Series> find_imagej(const TiffFile& file) {
    const auto get = [&](const char* key) { return to_number(find_imagej_note(file, key)).value_or(1); };
    const auto& pages = file.pages();
    const Page& page = pages.front();
    const std::uint64_t frames = get("frames");
    const std::uint64_t slices = get("slices");
    std::uint64_t channels = get("channels");
    std::uint64_t images = get("images");
    if (images < 1 || frames < 1 || slices < 1 || channels < 1 || multiply({frames, slices, channels}) > most_planes) {
        return {};
    }
    if (channels == 1 || (page.separate() > 1 && page.separate() == channels)) {
        images = frames * slices;  // Bio-Formats may declare separate samples as channels
    } else if (images == frames * slices && page.contiguous() == channels) {
        channels = 1;
    } else {
        images = frames * slices * channels;
    }
    images = images == 1 ? std::max<std::uint64_t>(1, pages.size()) : images;
    // ImageJ may write one directory for many planes, whose numbers lie one after the other.
    const std::uint64_t bytes = images * multiply(page.shape()) * (page.bits / 8);
    bool is_virtual = page.is_final();
    if (is_virtual && (page.offsets.front() > file.size() || bytes > file.size() - page.offsets.front())) {
        return {};
    }
    if (is_virtual && images > 1 && pages.size() > 1 && page.offsets.front() + bytes > pages[1].offset) {
        is_virtual = false;
    }
    Series series{.kind = "imagej", .pages = {}, .axes = "TZC", .shape = {frames, slices, channels}};
    series.is_contiguous = is_virtual && images > 1;
    for (const Page& each : pages) {
        if (series.pages.empty() || !is_virtual) {
            series.pages.push_back(&each);
        }
    }
    if (const std::uint64_t remain = images / (frames * slices * channels); remain > 1) {
        series.shape.insert(series.shape.begin(), remain);
        series.axes.insert(0, "I");
    }
    const Shape shape = page.shape();
    const std::string axes = page.axes();
    if (page.separate() > 1) {
        series.shape.back() = shape.front();
        series.shape.insert(series.shape.end(), shape.begin() + 1, shape.end());
        series.axes += axes.substr(1);
    } else {
        series.shape.insert(series.shape.end(), shape.begin(), shape.end());
        series.axes += axes;
    }
    return {series};
}

std::vector<Series> find_generic(const TiffFile& file) {
    std::vector<Series> every;
    for (const Page& page : file.pages()) {
        const auto is_same = [&](const Series& series) { return series.pages.front()->is_alike(page); };
        const auto same = std::find_if(every.begin(), every.end(), is_same);
        if (same != every.end()) {
            same->pages.push_back(&page);
        } else {
            every.push_back({.kind = "generic", .pages = {&page}, .axes = "I" + page.axes(), .shape = page.shape()});
        }
    }
    for (Series& series : every) {
        series.shape.insert(series.shape.begin(), series.pages.size());
    }
    return every;
}

}  // namespace

bool is_ome(const TiffFile& file) {
    if (file.pages().empty()) {
        return false;
    }
    std::string_view text = file.pages().front().description;
    text = text.substr(text.size() - std::min<std::size_t>(text.size(), 10));
    return text.substr(0, text.find_last_not_of(" \t\r\n") + 1).ends_with("OME>");
}

bool is_imagej(const TiffFile& file) {
    return !find_imagej_note(file, "ImageJ").empty() || !find_imagej_note(file, "SCIFIO").empty();
}

std::vector<Series> find_series(const TiffFile& file) {
    std::vector<Series> every;
    if (file.pages().empty()) {
        return every;
    }
    if (!find_shaped_description(file.pages().front()).empty()) {
        every = find_shaped(file);
    } else {
        every = is_ome(file) ? find_ome_series(file) : every;
        every = every.empty() && is_imagej(file) ? find_imagej(file) : every;
    }
    every = every.empty() ? find_generic(file) : every;
    std::erase_if(every, [](const Series& series) {
        const auto page =
            std::find_if(series.pages.begin(), series.pages.end(), [](const Page* p) { return p != nullptr; });
        return page != series.pages.end() && ((*page)->subfile_type & 1U) != 0;
    });
    return every;
}

}  // namespace cellvision::io
