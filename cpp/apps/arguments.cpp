#include "arguments.hpp"

#include <charconv>
#include <functional>
#include <map>
#include <string_view>

#include "cellvision/error.hpp"

using cellvision::ErrorKind;

const char* const usage =
    "usage: cellvision_predict --bundle DIR --out DIR [options] IMAGE..\n"
    "\n"
    "Write for each image a label TIFF and an overlay PNG, and for the run cells.csv, fields.csv and summary.json.\n"
    "\n"
    "  IMAGE                    TIFF, PNG or JPEG, or a folder of them\n"
    "  --bundle DIR             bundle folder, as export.py wrote it\n"
    "  --out DIR                folder for the results of this run alone\n"
    "  --provider NAME          cpu (default), cuda ..; there is no fallback\n"
    "  --provider-option K=V    passed on to the provider; may be repeated\n"
    "  --threads N              processor threads (default: all cores)\n"
    "  --memory-mib N           most working memory (default 1024)\n"
    "  --tile-px N              tile size (default: the bundle's, or what fits)\n"
    "  --overlap-px N           margin around tiles (default: the bundle's)\n"
    "  --batch N                tiles that go through the net at once (1)\n"
    "  --arena KIND             the net's memory after a run: keep (default), shrink, none\n"
    "  --channels A,B           names of the images' channels in order, e.g. hoechst,pi\n"
    "  --intensity-scale F      factor to the training counts, e.g. 257 from 8 to 16 bits\n"
    "  --pixel-size-um F        edge of a pixel, instead of the files' own\n"
    "  --no-overlay             leave out the overlay pictures\n"
    "  --timing                 print where the time went\n"
    "  --ort-library FILE       ONNX Runtime (default: $CELLVISION_ORT_LIBRARY, else the system's)\n";

namespace {

template <typename T>
T to_number(const std::string& option, const std::string& text, const char* need, const char* example) {
    T value{};
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc() || result.ptr != text.data() + text.size()) {
        cellvision::fail(ErrorKind::config, option + " " + text, need, option + " " + example);
    }
    return value;
}

int to_count(const std::string& option, const std::string& text, int most = cellvision::largest_size) {
    const std::string need = "a whole number from 1 to " + std::to_string(most);
    const int value = to_number<int>(option, text, need.c_str(), "2");
    if (value < 1 || value > most) {
        cellvision::fail(ErrorKind::config, option + " " + text, need, "leave it out");
    }
    return value;
}

double to_intensity_scale(const std::string& option, const std::string& text) {
    const std::string need(cellvision::intensity_scales);
    const auto value = to_number<double>(option, text, need.c_str(), "257");
    if (!cellvision::is_intensity_scale(value)) {
        cellvision::fail(ErrorKind::config, option + " " + text, need, option + " 257");
    }
    return value;
}

double to_pixel_size(const std::string& option, const std::string& text) {
    const std::string need(cellvision::pixel_sizes);
    const auto value = to_number<double>(option, text, need.c_str(), "0.65");
    if (!cellvision::is_pixel_size(value)) {
        cellvision::fail(ErrorKind::config, option + " " + text, need, "leave it out if unknown");
    }
    return value;
}

std::vector<std::string> split_names(const std::string& text) {
    std::vector<std::string> names;
    for (std::size_t at = 0; at <= text.size();) {
        const std::size_t end = std::min(text.find(',', at), text.size());
        const std::string part = text.substr(at, end - at);
        const std::size_t first = part.find_first_not_of(' ');
        names.push_back(first == std::string::npos ? "" : part.substr(first, part.find_last_not_of(' ') + 1 - first));
        at = end + 1;
    }
    return names;
}

void add_provider_option(Arguments& found, const std::string& text) {
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
        cellvision::fail(ErrorKind::config, "--provider-option " + text, "KEY=VALUE", "--provider-option device_id=1");
    }
    found.options.provider_options[text.substr(0, equals)] = text.substr(equals + 1);
}

using Setter = std::function<void(const std::string& option, const std::string& value)>;

std::map<std::string, Setter> list_setters(Arguments& found) {
    using Text = const std::string&;
    return {
        {"--bundle", [&](Text, Text value) { found.bundle = value; }},
        {"--out", [&](Text, Text value) { found.out = value; }},
        {"--provider", [&](Text, Text value) { found.options.provider = value; }},
        {"--provider-option", [&](Text, Text value) { add_provider_option(found, value); }},
        {"--threads",
         [&](Text option, Text value) {
             found.options.threads = to_count(option, value, cellvision::find_most_threads());
         }},
        {"--memory-mib", [&](Text option, Text value) { found.options.memory_mib = to_count(option, value); }},
        {"--tile-px", [&](Text option, Text value) { found.options.tile_px = to_count(option, value); }},
        {"--overlap-px", [&](Text option, Text value) { found.options.overlap_px = to_count(option, value); }},
        {"--batch", [&](Text option, Text value) { found.options.batch = to_count(option, value); }},
        {"--arena", [&](Text, Text value) { found.options.arena = value; }},
        {"--channels", [&](Text, Text value) { found.channel_names = split_names(value); }},
        {"--intensity-scale", [&](Text option, Text value) { found.intensity_scale = to_intensity_scale(option, value); }},
        {"--pixel-size-um", [&](Text option, Text value) { found.pixel_size_um = to_pixel_size(option, value); }},
        {"--ort-library", [&](Text, Text value) { found.options.ort_library = value; }},
    };
}

void check_complete(const Arguments& found) {
    std::string missing = found.images.empty() ? "IMAGE" : "";
    missing = found.out.empty() ? "--out" : missing;
    missing = found.bundle.empty() ? "--bundle" : missing;
    if (!missing.empty() && !found.help) {
        cellvision::fail(ErrorKind::config, "no " + missing + " given", "--bundle, --out and an image",
                         "cellvision_predict --bundle DIR --out DIR IMAGE");
    }
}

}  // namespace

Arguments parse_arguments(int count, char** arguments) {
    Arguments found;
    const auto setters = list_setters(found);
    bool only_images = false;
    for (int i = 1; i < count; ++i) {
        std::string word = arguments[i];
        if (only_images || !word.starts_with("-")) {
            found.images.emplace_back(word);
        } else if (word == "--") {
            only_images = true;
        } else if (word == "--help" || word == "-h") {
            found.help = true;
        } else if (word == "--no-overlay") {
            found.overlay = false;
        } else if (word == "--timing") {
            found.timing = true;
        } else {
            const std::size_t equals = word.find('=');
            const std::string option = word.substr(0, equals);
            const auto setter = setters.find(option);
            if (setter == setters.end()) {
                cellvision::fail(ErrorKind::config, "unknown option " + option, "one that --help lists", "--help");
            }
            if (equals == std::string::npos && i + 1 >= count) {
                cellvision::fail(ErrorKind::config, option + " without a value", "a value after it", "--help");
            }
            setter->second(option, equals != std::string::npos ? word.substr(equals + 1) : arguments[++i]);
        }
    }
    check_complete(found);
    return found;
}
