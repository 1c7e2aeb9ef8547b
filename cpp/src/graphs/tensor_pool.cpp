#include "graphs/tensor_pool.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <utility>

namespace cellvision {
namespace {

constexpr std::size_t page_bytes = 1U << 16;   // a multiple of every system's pages
constexpr std::size_t large_bytes = 1U << 20;  // smaller ones are cheaper from the heap
constexpr std::size_t alignment = 64;

std::size_t round_up(std::size_t bytes, std::size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

void* map(std::size_t bytes) {
    void* block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return block == MAP_FAILED ? nullptr : block;
}

/// A block with more pages; what it held is of no interest.
void* grow(void* block, std::size_t from, std::size_t to) {
#ifdef MREMAP_MAYMOVE
    void* grown = mremap(block, from, to, MREMAP_MAYMOVE);
    if (grown != MAP_FAILED) {
        return grown;
    }
#endif
    munmap(block, from);
    return map(to);
}

}  // namespace

void* TensorPool::allocate(std::size_t bytes) {
    if (bytes < large_bytes) {
        return std::aligned_alloc(alignment, round_up(std::max<std::size_t>(bytes, 1), alignment));
    }
    const std::size_t size = round_up(bytes, page_bytes);
    const std::lock_guard lock(mutex_);
    void* block = reuse(size);
    if (block != nullptr) {
        used_.emplace(block, size);
        used_bytes_ += size;
        peak_bytes_ = std::max(peak_bytes_, used_bytes_);
        drop_free_above(peak_bytes_ - used_bytes_);  // before the new pages are touched
    }
    return block;
}

void* TensorPool::reuse(std::size_t bytes) {
    if (free_.empty()) {
        return map(bytes);
    }
    auto found = free_.lower_bound(bytes);
    found = found == free_.end() ? std::prev(found) : found;
    const auto [size, block] = *found;
    free_.erase(found);
    free_bytes_ -= size;
    if (size < bytes) {
        return grow(block, size, bytes);
    }
    if (size > bytes) {
        free_.emplace(size - bytes, static_cast<std::byte*>(block) + bytes);
        free_bytes_ += size - bytes;
    }
    return block;
}

void TensorPool::release(void* block) {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(block);
    if (found == used_.end()) {
        std::free(block);
        return;
    }
    used_bytes_ -= found->second;
    free_bytes_ += found->second;
    free_.emplace(found->second, block);
    used_.erase(found);
}

void TensorPool::drop_free() {
    const std::lock_guard lock(mutex_);
    drop_free_above(0);
}

std::size_t TensorPool::take_peak() {
    const std::lock_guard lock(mutex_);
    drop_free_above(0);
    return std::exchange(peak_bytes_, used_bytes_) - used_bytes_;
}

void TensorPool::drop_free_above(std::size_t most_bytes) {
    while (free_bytes_ > most_bytes) {
        const auto [size, block] = *free_.rbegin();
        free_.erase(std::prev(free_.end()));
        const std::size_t kept = size - std::min(size, free_bytes_ - most_bytes);
        munmap(static_cast<std::byte*>(block) + kept, size - kept);
        free_bytes_ -= size - kept;
        if (kept > 0) {
            free_.emplace(kept, block);
        }
    }
}

TensorPool& tensor_pool() {
    static TensorPool& pool = *new TensorPool;
    return pool;
}

}  // namespace cellvision
