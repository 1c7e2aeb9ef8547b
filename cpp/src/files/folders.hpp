#pragma once

#include <filesystem>
#include <string>

namespace cellvision {

/// Makes a folder for results, with those above it, if it does not exist; what killed processes left in it goes. Error
/// where it cannot be made or written.
void make_folder(const std::filesystem::path& folder);

/// The name of this machine.
[[nodiscard]] std::string find_host();

}  // namespace cellvision
