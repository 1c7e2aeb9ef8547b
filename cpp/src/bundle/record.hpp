#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace cellvision {

/// Throws Error "key=value; need ..; try: key=example" unless `is_right`.
void check_value(bool is_right, std::string_view key, const nlohmann::json& value, std::string_view need,
                 std::string_view example);

/// One JSON object of a manifest, read key by key; every method throws Error where the value is not what it must be.
class Record {
public:
    /// @param place what error texts put before a key, e.g. "splitting.", or "".
    /// @param required keys that must be there.
    /// @param optional keys that may be there; any other is an error.
    Record(const nlohmann::json& object, std::string place, std::initializer_list<std::string_view> required,
           std::initializer_list<std::string_view> optional);

    [[nodiscard]] bool has(std::string_view key) const;
    [[nodiscard]] const nlohmann::json& at(std::string_view key) const;

    /// A text that is not empty.
    [[nodiscard]] std::string read_name(std::string_view key, std::string_view example) const;
    /// One of `known`; `usual` where the key is absent.
    [[nodiscard]] std::string read_choice(std::string_view key, std::initializer_list<std::string_view> known,
                                          std::string_view usual) const;
    /// At least so many names, all different.
    [[nodiscard]] std::vector<std::string> read_names(std::string_view key, std::size_t least,
                                                      std::string_view example) const;
    /// A number between 0 and 1, neither included; `usual` where the key is absent.
    [[nodiscard]] double read_share(std::string_view key, double usual) const;
    /// A whole number from `least` to largest_size; `usual` where the key is absent.
    [[nodiscard]] int read_whole(std::string_view key, int least, int usual) const;
    /// A list.
    [[nodiscard]] const nlohmann::json& read_list(std::string_view key) const;

private:
    const nlohmann::json& object_;
    std::string place_;
};

}  // namespace cellvision
