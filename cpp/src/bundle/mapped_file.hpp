#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace cellvision {

/// A file's bytes, mapped into memory for reading.
class MappedFile {
public:
    /// Throws Error where the file cannot be read or is empty.
    explicit MappedFile(const std::filesystem::path& file);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

private:
    std::span<const std::byte> bytes_;
};

}  // namespace cellvision
