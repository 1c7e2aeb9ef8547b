#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace cellvision {

/// SHA-256 (FIPS 180-4) of bytes that come in pieces.
class Sha256 {
public:
    /// By the processor's own instructions where it has them.
    Sha256();
    /// By those instructions, or without them. They must be there to be used.
    explicit Sha256(bool by_instructions) : by_instructions_(by_instructions) {}

    void add(std::span<const std::byte> bytes);
    /// 64 lowercase hex digits; nothing can be added after.
    [[nodiscard]] std::string finish();

private:
    void add_blocks(const std::byte* blocks, std::size_t count);

    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<std::byte, 64> rest_{};
    std::uint64_t length_ = 0;
    bool by_instructions_;
};

}  // namespace cellvision
