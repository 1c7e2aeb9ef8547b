#include "graphs/external_data.hpp"

#include <cstdint>
#include <optional>

#include "cellvision/error.hpp"

namespace cellvision {
namespace {

enum class Kind { model, graph, function, node, attribute, sparse, tensor };

[[noreturn]] void fail_broken() {
    fail(ErrorKind::bundle, "the graph file is cut short or not ONNX", "an ONNX file", "export the bundle again");
}

/// Field numbers of onnx.proto: from each kind of message, which fields lead on towards tensors.
std::optional<Kind> follow(Kind kind, std::uint64_t field) {
    switch (kind) {
        case Kind::model:
            if (field == 7) return Kind::graph;
            return field == 25 ? std::optional(Kind::function) : std::nullopt;
        case Kind::graph:
            if (field == 1) return Kind::node;
            if (field == 5) return Kind::tensor;
            return field == 15 ? std::optional(Kind::sparse) : std::nullopt;
        case Kind::function:
            if (field == 7) return Kind::node;
            return field == 11 ? std::optional(Kind::attribute) : std::nullopt;
        case Kind::node:
            return field == 5 ? std::optional(Kind::attribute) : std::nullopt;
        case Kind::attribute:
            if (field == 5 || field == 10) return Kind::tensor;
            if (field == 6 || field == 11) return Kind::graph;
            return field == 22 || field == 23 ? std::optional(Kind::sparse) : std::nullopt;
        case Kind::sparse:
            return field == 1 || field == 2 ? std::optional(Kind::tensor) : std::nullopt;
        case Kind::tensor:
            return std::nullopt;
    }
    return std::nullopt;
}

/// Reads one protobuf message from the front to the end.
class Reader {
public:
    explicit Reader(std::span<const std::byte> message) : rest_(message) {}

    [[nodiscard]] bool empty() const noexcept { return rest_.empty(); }

    std::span<const std::byte> take(std::uint64_t length) {
        if (length > rest_.size()) {
            fail_broken();
        }
        const auto taken = rest_.first(static_cast<std::size_t>(length));
        rest_ = rest_.subspan(taken.size());
        return taken;
    }

    std::uint64_t take_number() {
        std::uint64_t value = 0;
        for (unsigned shift = 0; shift <= 63; shift += 7) {
            const auto byte = std::to_integer<std::uint64_t>(take(1).front());
            value |= (byte & 0x7FU) << shift;
            if (byte < 0x80U) {
                return value;
            }
        }
        fail_broken();
    }

private:
    std::span<const std::byte> rest_;
};

bool search(std::span<const std::byte> message, Kind kind, int depth) {
    constexpr int deepest = 200;  // graphs within attributes of nodes of graphs; a real one has a handful of levels
    constexpr std::uint64_t external_data = 13;
    constexpr std::uint64_t data_location = 14;
    if (depth > deepest) {
        fail_broken();
    }
    for (Reader reader(message); !reader.empty();) {
        const std::uint64_t key = reader.take_number();
        const std::uint64_t field = key >> 3U;
        switch (key & 7U) {
            case 0:
                if (reader.take_number() != 0 && kind == Kind::tensor && field == data_location) {
                    return true;
                }
                break;
            case 1: reader.take(8); break;
            case 2: {
                const auto value = reader.take(reader.take_number());
                const auto next = follow(kind, field);
                if ((kind == Kind::tensor && field == external_data) || (next && search(value, *next, depth + 1))) {
                    return true;
                }
                break;
            }
            case 5: reader.take(4); break;
            default: fail_broken();
        }
    }
    return false;
}

}  // namespace

bool has_external_data(std::span<const std::byte> model) { return search(model, Kind::model, 0); }

}  // namespace cellvision
