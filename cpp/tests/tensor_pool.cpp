// The pool keeps what is written into its blocks, and never holds more memory than was in use at once.
#include "graphs/tensor_pool.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <random>
#include <vector>

namespace {

struct Block {
    unsigned char* bytes;
    std::size_t size;
    unsigned char fill;
};

std::size_t find_resident() {
    std::ifstream stream("/proc/self/statm");
    std::size_t total = 0;
    std::size_t resident = 0;
    stream >> total >> resident;
    return resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

[[noreturn]] void fail(const char* what) {
    std::cerr << "tensor_pool: " << what << '\n';
    std::exit(1);
}

}  // namespace

int main() {
    constexpr std::size_t mib = 1U << 20;
    constexpr std::size_t slack = 16 * mib;  // small blocks, and what is rounded up
    cellvision::TensorPool pool;
    std::mt19937 random(0);
    std::vector<Block> blocks;
    std::size_t used = 0;
    std::size_t most = 0;
    const std::size_t before = find_resident();
    const auto release = [&](std::size_t at) {
        const Block block = blocks[at];
        if (std::any_of(block.bytes, block.bytes + block.size, [&](auto byte) { return byte != block.fill; })) {
            fail("a block does not hold what was written into it");
        }
        pool.release(block.bytes);
        used -= block.size;
        blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(at));
    };
    for (int step = 0; step < 400; ++step) {
        if (blocks.size() > 5 || (!blocks.empty() && random() % 2 == 0)) {
            release(random() % blocks.size());
            continue;
        }
        const std::size_t size = random() % 4 == 0 ? 1 + random() % 5000 : 1 + random() % (16 * mib);
        auto* bytes = static_cast<unsigned char*>(pool.allocate(size));
        const auto fill = static_cast<unsigned char>(step);
        if (bytes == nullptr || reinterpret_cast<std::uintptr_t>(bytes) % 64 != 0) {
            fail("no block, or one that is not aligned");
        }
        std::memset(bytes, fill, size);
        blocks.push_back({bytes, size, fill});
        used += size;
        most = std::max(most, used);
        if (before != 0 && find_resident() > before + most + slack) {
            fail("more memory is held than was in use at once");
        }
    }
    while (!blocks.empty()) {
        release(blocks.size() - 1);
    }
    const std::size_t peak = pool.take_peak();
    if (peak > most + slack || peak + slack < most) {
        fail("the peak is not what was in use at once");
    }
    if (find_resident() > before + slack) {
        fail("memory stays held after all was released");
    }
    if (pool.allocate(std::size_t{1} << 62) != nullptr) {
        fail("memory that no system has was given");
    }
    return 0;
}
