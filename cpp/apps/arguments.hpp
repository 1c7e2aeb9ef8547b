#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cellvision/predictor.hpp"

/// What the command line asks for.
struct Arguments {
    std::filesystem::path bundle;
    std::filesystem::path out;
    std::vector<std::filesystem::path> images;
    cellvision::Options options;
    std::vector<std::string> channel_names;
    std::optional<double> pixel_size_um;
    std::optional<double> intensity_scale;
    bool overlay = true;
    bool timing = false;
    bool help = false;
};

/// How to call the program.
extern const char* const usage;

/// Throws cellvision::Error where an option is unknown, lacks its value, or is missing.
[[nodiscard]] Arguments parse_arguments(int count, char** arguments);
