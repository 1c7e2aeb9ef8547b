#include <algorithm>
#include <array>
#include <charconv>
#include <locale>

#include <nlohmann/json.hpp>

#include "cellvision/error.hpp"
#include "cellvision/writers.hpp"

namespace cellvision {

namespace {

/// A field of a table, in quotes where it needs them.
std::string quote(const std::string& text) {
    if (text.find_first_of(",\"\n\r") == std::string::npos) {
        return text;
    }
    std::string quoted = "\"";
    for (const char letter : text) {
        quoted.append(letter == '"' ? 2 : 1, letter);
    }
    return quoted + "\"";
}

std::string join_fields(const std::vector<std::string>& fields) {
    std::string line;
    for (std::size_t i = 0; i < fields.size(); ++i) {
        line += (i > 0 ? "," : "") + quote(fields[i]);
    }
    return line + "\n";
}

std::string format(std::optional<double> value, double scale = 1.0) {
    return value ? format_number(*value * scale) : "";
}

std::string fix(double value, int digits) {
    std::array<char, 64> text{};
    const auto result = std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed, digits);
    return {text.data(), result.ptr};
}

/// One line; bytes of a file name that are no UTF-8 are replaced.
std::string dump(const nlohmann::ordered_json& record) {
    return record.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

nlohmann::ordered_json to_json(std::optional<double> value) { return value ? nlohmann::ordered_json(*value) : nullptr; }

}  // namespace

std::string format_number(double value) {
    std::array<char, 40> text{};
    const auto result = std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::general, 9);
    return {text.data(), result.ptr};
}

std::string format_viability(const Cells& cells) {
    const Viability found = cells.viability();
    if (!found.viability || !found.low || !found.high) {
        return "viability undefined (no cells)";
    }
    return "viability " + fix(100.0 * *found.viability, 1) + " % (" + fix(100.0 * *found.low, 1) + " to " +
           fix(100.0 * *found.high, 1) + ")";
}

ResultTables::ResultTables(const std::filesystem::path& folder, const Manifest& manifest)
    : files_(folder), classes_(manifest.classes), channels_(manifest.channel_names()), kind_(manifest.kind) {
    Cells empty;
    empty.classes = classes_;
    empty.kind = kind_;
    has_viability_ = empty.has_viability();
    open(cells_, "cells.csv");
    open(fields_, "fields.csv");
    std::vector<std::string> columns{"image",    "label",         "class",        "area_px",
                                     "area_um2", "centroid_y_px", "centroid_x_px"};
    for (const std::string& channel : channels_) {
        columns.push_back("mean_" + channel);
    }
    if (has_viability_) {
        columns.emplace_back("p_live");
    }
    if (kind_ == "instance") {
        columns.emplace_back("score");
    }
    cells_ << join_fields(columns);
    columns = {"image", "cells"};
    columns.insert(columns.end(), classes_.begin() + 1, classes_.end());
    if (has_viability_) {
        columns.insert(columns.end(), {"viability_percent", "low_percent", "high_percent"});
    }
    fields_ << join_fields(columns);
}

void ResultTables::open(std::ofstream& stream, const std::string& name) {
    stream.imbue(std::locale::classic());
    stream.open(files_.path(name), std::ios::binary);
}

void ResultTables::add(const std::string& name, const Cells& cells, const std::map<std::string, double>& seconds) {
    ++images_;
    for (const Cell& cell : cells.cells) {
        std::vector<std::string> row{name,
                                     std::to_string(cell.label),
                                     classes_[static_cast<std::size_t>(cell.class_id)],
                                     std::to_string(cell.area_px),
                                     format(cells.area_um2(cell)),
                                     format_number(cell.centroid_y_px),
                                     format_number(cell.centroid_x_px)};
        for (const double mean : cell.mean_intensity) {
            row.push_back(format_number(mean));
        }
        if (has_viability_) {
            row.push_back(format(cells.p_live(cell)));
        }
        if (kind_ == "instance") {
            row.push_back(format(cell.score));
        }
        cells_ << join_fields(row);
    }
    std::vector<std::string> row{name, std::to_string(cells.size())};
    nlohmann::ordered_json record{{"image", name}, {"height", cells.height}, {"width", cells.width}};
    record["tiles"] = cells.tiles;
    record["pixel_size_um"] = to_json(cells.pixel_size_um);
    record["cells"] = cells.size();
    for (std::size_t i = 1; i < classes_.size(); ++i) {
        row.push_back(std::to_string(cells.count(classes_[i])));
        record["classes"][classes_[i]] = cells.count(classes_[i]);
    }
    if (has_viability_) {
        const Viability found = cells.viability();
        const std::array<std::pair<const char*, std::optional<double>>, 3> shares{
            {{"viability", found.viability}, {"low", found.low}, {"high", found.high}}};
        for (const auto& [key, share] : shares) {
            row.push_back(format(share, 100.0));
            record["viability"][key] = to_json(share);
        }
    }
    record["seconds"] = seconds;
    fields_ << join_fields(row);
    summary_ += (summary_.empty() ? "    " : ",\n    ") + dump(record);
}

void ResultTables::commit(const std::map<std::string, std::string>& run) {
    if (images_ == 0) {
        files_.discard();
        return;
    }
    std::ofstream summary;
    open(summary, "summary.json");
    summary << "{\n  \"run\": " << dump(run) << ",\n  \"images\": [\n" << summary_ << "\n  ]\n}\n";
    for (std::ofstream* stream : {&cells_, &fields_, &summary}) {
        stream->close();
        if (!*stream) {
            fail(ErrorKind::config, "the tables cannot be written to their end", "room on the disk", "another folder");
        }
    }
    files_.commit();
}

}  // namespace cellvision
