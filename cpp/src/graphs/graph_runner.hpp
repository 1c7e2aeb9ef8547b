#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cellvision/image.hpp"

namespace cellvision {

/// Kind of a tensor's numbers.
enum class Element { uint8, uint16, float32, int64, boolean, other };

/// "tensor(float)" and so on, as ONNX writes it.
[[nodiscard]] std::string to_text(Element element);

/// The kind of an image's counts.
[[nodiscard]] Element to_element(DType dtype);

/// A named array that goes into a graph or comes out of it; it may share memory with whoever made it.
struct Tensor {
    std::string name;
    Element element = Element::float32;
    std::vector<std::int64_t> shape;
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> owner;  ///< keeps `bytes` alive; empty where the caller does

    template <typename T>
    [[nodiscard]] std::span<const T> values() const {
        return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
    }
};

/// An input or output of a graph; free sizes are -1.
struct Port {
    std::string name;
    Element element = Element::other;
    std::vector<std::int64_t> shape;
};

/// A graph that can be run from several threads at once, whatever engine runs it.
class GraphRunner {
public:
    virtual ~GraphRunner() = default;

    /// The outputs named in `wanted`, in that order. Throws std::exception of the engine's kinds.
    [[nodiscard]] virtual std::vector<Tensor> run(std::span<const Tensor> feeds,
                                                  std::span<const std::string> wanted) = 0;
    [[nodiscard]] virtual const std::vector<Port>& inputs() const = 0;
    [[nodiscard]] virtual const std::vector<Port>& outputs() const = 0;
    [[nodiscard]] virtual const std::filesystem::path& path() const = 0;
};

}  // namespace cellvision
