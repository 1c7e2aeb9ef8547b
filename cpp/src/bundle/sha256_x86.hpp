#pragma once

#include <cstddef>
#include <cstdint>

namespace cellvision {

/// Whether this processor has instructions for SHA-256.
[[nodiscard]] bool has_sha_instructions() noexcept;

/// Takes blocks of 64 bytes into a state of 8 words; `rounds` are SHA-256's 64 constants. Only on such processors.
void add_blocks_by_instructions(std::uint32_t* state, const std::uint32_t* rounds, const std::byte* blocks,
                                std::size_t count);

}  // namespace cellvision
