#pragma once

#include <filesystem>

namespace cellvision {

/// Makes a folder for results, with those above it, if it does not exist; Error where it cannot be made or written.
void make_folder(const std::filesystem::path& folder);

}  // namespace cellvision
