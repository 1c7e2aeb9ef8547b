#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <unordered_map>

namespace cellvision {

/// Memory for what graphs compute, of which never more is held than was in use at once.
///
/// Large blocks come from the system page by page. One that is free serves the next request whatever its size: its tail
/// is cut off, or it grows by the missing pages alone. ONNX Runtime's own arena instead grows by doubling and holds
/// pieces that nothing fits into; on a U-Net it takes half as much again. Small blocks come from the heap.
class TensorPool {
public:
    /// At least `bytes`, aligned to 64; null where the system has no more.
    [[nodiscard]] void* allocate(std::size_t bytes);
    void release(void* block);

    /// Gives the free blocks back to the system.
    void drop_free();

    /// Most bytes that large blocks had at once since the last call, beyond those in use now. Drops the free ones.
    std::size_t take_peak();

private:
    void drop_free_above(std::size_t most_bytes);
    [[nodiscard]] void* reuse(std::size_t bytes);

    std::mutex mutex_;
    std::unordered_map<void*, std::size_t> used_;  // large blocks, with their bytes
    std::multimap<std::size_t, void*> free_;       // by bytes
    std::size_t used_bytes_ = 0;
    std::size_t free_bytes_ = 0;
    std::size_t peak_bytes_ = 0;
};

/// The pool of this process; it lives as long, for ONNX Runtime frees tensors while static objects are destroyed.
[[nodiscard]] TensorPool& tensor_pool();

}  // namespace cellvision
