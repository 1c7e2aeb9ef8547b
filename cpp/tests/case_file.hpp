#pragma once

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

/// Cases that tests/cpp_vectors.py writes: a list in cases.json, arrays as raw files beside it.
namespace cases {

class Case {
public:
    Case(std::filesystem::path folder, nlohmann::json facts) : folder_(std::move(folder)), facts_(std::move(facts)) {}

    [[nodiscard]] const nlohmann::json& operator[](const std::string& key) const { return facts_.at(key); }
    [[nodiscard]] bool has(const std::string& key) const { return facts_.contains(key); }
    [[nodiscard]] bool has_array(const std::string& name) const { return facts_.at("arrays").contains(name); }
    [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
    [[nodiscard]] std::string name() const { return facts_.at("name").get<std::string>(); }

    [[nodiscard]] int size(const std::string& array, std::size_t axis) const {
        return facts_.at("arrays").at(array).at("shape").at(axis).get<int>();
    }

    [[nodiscard]] std::string dtype(const std::string& array) const {
        return facts_.at("arrays").at(array).at("dtype").get<std::string>();
    }

    [[nodiscard]] std::vector<char> bytes(const std::string& array) const {
        const auto file = facts_.at("arrays").at(array).at("file").get<std::string>();
        std::ifstream stream(folder_ / file, std::ios::binary);
        return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    }

    /// The numbers of an array; T must be the type that they were written as.
    template <typename T>
    [[nodiscard]] std::vector<T> values(const std::string& array) const {
        const auto raw = bytes(array);
        std::vector<T> numbers(raw.size() / sizeof(T));
        if (!numbers.empty()) {
            std::memcpy(numbers.data(), raw.data(), numbers.size() * sizeof(T));
        }
        return numbers;
    }

private:
    std::filesystem::path folder_;
    nlohmann::json facts_;
};

inline std::vector<Case> load(const std::filesystem::path& folder) {
    std::ifstream stream(folder / "cases.json");
    std::vector<Case> found;
    for (const auto& facts : nlohmann::json::parse(stream)) {
        found.emplace_back(folder, facts);
    }
    return found;
}

/// Throws unless something holds; the text says what was compared.
inline void expect(bool holds, const std::string& what) {
    if (!holds) {
        throw std::runtime_error(what);
    }
}

template <typename T>
void expect_equal(const T& found, const T& expected, const std::string& what) {
    expect(found == expected, what + " differ");
}

inline void expect_near(double found, double expected, double most, const std::string& what) {
    const bool is_near = found >= expected - most && found <= expected + most;  // false for NaN
    expect(is_near, what + ": " + std::to_string(found) + " instead of " + std::to_string(expected));
}

}  // namespace cases
