// Many images through one bundle, each done or not done, never half: what ``cellvision predict`` does in Python.

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <map>
#include <utility>

#include "arguments.hpp"
#include "cellvision/error.hpp"
#include "cellvision/image_io.hpp"
#include "cellvision/predictor.hpp"
#include "cellvision/writers.hpp"

namespace {

namespace fs = std::filesystem;
using cellvision::Cells;
using cellvision::ErrorKind;
using cellvision::Image;

constexpr int exit_ok = 0, exit_some_failed = 1, exit_error = 2, exit_by_signal = 128;

volatile std::sig_atomic_t interrupting = 0;  // the signal that asked for an end, or 0

struct Interrupted {};

/// The second one ends the program at once.
void note_interrupt(int signal) {
    interrupting = signal;
    std::signal(signal, SIG_DFL);
}

void check_interrupt() {
    if (interrupting != 0) {
        throw Interrupted();
    }
}

/// The text with control characters escaped: a file name must not forge a line or colour of a log.
std::string to_line(const std::string& text) {
    std::string line;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        const bool is_c1 = byte == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
        if (byte >= 0x20 && byte != 0x7F && !is_c1) {
            line.push_back(text[i]);
            continue;
        }
        std::array<char, 8> escaped{};
        std::snprintf(escaped.data(), escaped.size(), "\\x%02x", is_c1 ? static_cast<unsigned char>(text[++i]) : byte);
        line += byte == '\n' ? "\\n" : byte == '\r' ? "\\r" : byte == '\t' ? "\\t" : escaped.data();
    }
    return line;
}

std::string to_lower(std::string text) {
    for (char& letter : text) {
        letter = letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
    }
    return text;
}

/// The image files by the name that their results will have: the file name without its ending; of files that share it,
/// the folder's name and an underscore come in front.
std::vector<std::pair<std::string, fs::path>> collect_images(const Arguments& asked) {
    std::vector<fs::path> files;
    for (const fs::path& path : asked.images) {
        const std::vector<fs::path> found = fs::is_directory(path) ? cellvision::list_images(path) : std::vector{path};
        files.insert(files.end(), found.begin(), found.end());
    }
    for (const fs::path& file : files) {
        if (!fs::is_regular_file(file)) {
            cellvision::fail(ErrorKind::data, file.string() + ": no such file", "image files", "check the path");
        }
    }
    cellvision::check_out_folder(files, asked.out);
    std::map<std::string, int> shared;
    for (const fs::path& file : files) {
        ++shared[to_lower(cellvision::image_stem(file))];  // some file systems do not tell cases apart
    }
    std::vector<std::pair<std::string, fs::path>> named;
    std::map<std::string, fs::path> taken;
    for (const fs::path& file : files) {
        std::string name = cellvision::image_stem(file);
        if (shared[to_lower(name)] > 1) {
            name = fs::canonical(file).parent_path().filename().string() + "_" + name;
        }
        if (const auto [other, is_new] = taken.emplace(to_lower(name), file); !is_new) {
            cellvision::fail(ErrorKind::config,
                             other->second.string() + ", " + file.string() + " would have results of one name",
                             "names that differ within a run",
                             "give each file once, or one run with its own --out for each");
        }
        named.emplace_back(std::move(name), file);
    }
    return named;
}

/// Seconds since the last call, or since it was made.
class Clock {
public:
    double take() {
        const auto now = std::chrono::steady_clock::now();
        return std::chrono::duration<double>(now - std::exchange(last_, now)).count();
    }

private:
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

/// The image with the bundle's channels alone, in the bundle's order.
Image pick_channels(Image image, const cellvision::Manifest& manifest) {
    const std::vector<std::string> wanted = manifest.channel_names();
    if (image.channel_names.empty() || image.channel_names == wanted) {
        return image;
    }
    Image picked(static_cast<int>(wanted.size()), image.height, image.width, image.dtype);
    for (std::size_t c = 0; c < wanted.size(); ++c) {
        const auto first = image.channel_names.begin();
        const auto place = std::find(first, image.channel_names.end(), wanted[c]) - first;
        const auto plane = image.plane(static_cast<int>(place));
        std::copy(plane.begin(), plane.end(), picked.plane(static_cast<int>(c)).begin());
    }
    return picked;
}

class Run {
public:
    explicit Run(const Arguments& asked)
        : asked_(asked),
          images_(collect_images(asked)),
          claim_(asked.out),
          predictor_(asked.bundle, asked.options),
          tables_(asked.out, predictor_.manifest()) {}

    int predict_all() {
        for (const auto& [name, file] : images_) {
            check_interrupt();
            try {
                predict(name, file);
            } catch (const std::bad_alloc&) {
                fail(name, cellvision::explain(file.string() + " takes more memory than there is",
                                               "a smaller image or more memory", "smaller pieces"));
            } catch (const std::exception& error) {
                fail(name, error.what());
            }
        }
        check_interrupt();
        const auto& options = asked_.options;
        tables_.commit({{"bundle", asked_.bundle.string()},
                        {"onnxruntime", predictor_.runtime_version()},
                        {"provider", options.provider},
                        {"threads", options.threads > 0 ? std::to_string(options.threads) : "all"}});
        if (asked_.timing) {
            const std::string opened = format(predictor_.timings().open_s);
            std::cout << "total: open " << opened << ", all " << format(all_.take()) << '\n';
        }
        return report();
    }

private:
    static std::string format(double seconds) {
        std::array<char, 32> text{};
        std::snprintf(text.data(), text.size(), "%.3f s", seconds);
        return text.data();
    }

    void predict(const std::string& name, const fs::path& file) {
        Clock clock;
        Image image = cellvision::read_image(file);
        if (!asked_.channel_names.empty()) {
            image.channel_names = asked_.channel_names;
        }
        image.pixel_size_um = asked_.pixel_size_um ? asked_.pixel_size_um : image.pixel_size_um;
        std::map<std::string, double> seconds{{"read", clock.take()}};
        const cellvision::Timings before = predictor_.timings();
        const Cells cells = predictor_(image, asked_.intensity_scale);
        const cellvision::Timings after = predictor_.timings();
        check_interrupt();
        seconds["net"] = after.net_s - before.net_s;
        seconds["cells"] = after.cells_s - before.cells_s;
        clock.take();
        write(name, std::move(image), cells);
        seconds["write"] = clock.take();
        tables_.add(name, cells, seconds);
        describe(name, cells, seconds);
    }

    void write(const std::string& name, Image image, const Cells& cells) const {
        cellvision::StagedFiles files(asked_.out);
        cellvision::write_label_image(files.path(name + "_labels.tif"), cells.label_image, cells.pixel_size_um);
        if (asked_.overlay) {
            const auto picture = cellvision::draw_overlay(pick_channels(std::move(image), predictor_.manifest()), cells,
                                                          predictor_.manifest().channels);
            cellvision::write_png(files.path(name + "_overlay.png"), picture.rgb, picture.height, picture.width);
        }
        files.commit();
    }

    void describe(const std::string& name, const Cells& cells, const std::map<std::string, double>& seconds) const {
        std::cout << to_line(name) << ": " << cells.size() << " cells";
        if (cells.has_viability()) {
            std::cout << ", " << cellvision::format_viability(cells);
        }
        if (asked_.timing) {
            for (const char* step : {"read", "net", "cells", "write"}) {
                std::cout << (std::strcmp(step, "read") == 0 ? "; " : ", ") << step << ' ' << format(seconds.at(step));
            }
        }
        std::cout << std::endl;
        const auto trained = predictor_.manifest().pixel_size_um;
        const double ratio = cells.pixel_size_um.value_or(1.0) / trained.value_or(1.0);
        if (trained && cells.pixel_size_um && (ratio < 0.8 || ratio > 1.25)) {
            std::fprintf(stderr, "%s: note: a pixel is %g um, the bundle was trained at %g um\n", to_line(name).c_str(),
                         *cells.pixel_size_um, *trained);
        }
        if (cells.tiles > 1 && !predictor_.manifest().has_exact_tiles) {
            std::cerr << to_line(name)
                      << ": note: this net looks at the whole image, and was shown tiles; cells of doubtful score may "
                         "differ untiled\n";
        }
        for (const std::string& note : cells.notes) {
            std::cerr << to_line(name) << ": note: " << note << '\n';
        }
    }

    void fail(const std::string& name, const std::string& why) {
        failures_.push_back(why);
        std::cerr << to_line(name) << ": failed\n";
    }

    [[nodiscard]] int report() const {
        for (const std::string& why : failures_) {
            std::cerr << "cellvision_predict: " << to_line(why) << '\n';
        }
        if (!failures_.empty() && images_.size() > 1) {
            std::cerr << "cellvision_predict: " << failures_.size() << " of " << images_.size() << " images failed\n";
        }
        return failures_.empty() ? exit_ok : failures_.size() == images_.size() ? exit_error : exit_some_failed;
    }

    Clock all_;
    const Arguments& asked_;
    std::vector<std::pair<std::string, fs::path>> images_;
    cellvision::FolderClaim claim_;
    cellvision::Predictor predictor_;
    cellvision::ResultTables tables_;
    std::vector<std::string> failures_;
};

}  // namespace

int main(int count, char** arguments) {
    std::signal(SIGINT, note_interrupt);
    std::signal(SIGTERM, note_interrupt);
    try {
        Arguments asked = parse_arguments(count, arguments);
        asked.options.before_tiles = check_interrupt;
        if (asked.help) {
            std::cout << usage;
            return exit_ok;
        }
#ifdef CELLVISION_BUILT_WITH_ORT
        if (asked.options.ort_library.empty() && std::getenv("CELLVISION_ORT_LIBRARY") == nullptr) {
            asked.options.ort_library = CELLVISION_BUILT_WITH_ORT;
        }
#endif
        return Run(asked).predict_all();
    } catch (const Interrupted&) {
        std::cerr << "cellvision_predict: interrupted\n";
        return exit_by_signal + interrupting;
    } catch (const std::exception& error) {
        std::cerr << "cellvision_predict: " << to_line(error.what()) << '\n';
        return exit_error;
    }
}
