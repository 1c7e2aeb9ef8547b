#include "bundle/record.hpp"

#include <algorithm>

#include "cellvision/error.hpp"
#include "cellvision/manifest.hpp"

namespace cellvision {
namespace {

std::string join(std::initializer_list<std::string_view> names) {
    std::string text;
    for (const std::string_view name : names) {
        text.append(text.empty() ? "" : ", ").append(name);
    }
    return text;
}

}  // namespace

void check_value(bool is_right, std::string_view key, const nlohmann::json& value, std::string_view need,
                 std::string_view example) {
    if (is_right) {
        return;
    }
    // A bundle may hold any bytes: what is not UTF-8 is shown as such, not thrown at the reader.
    std::string shown = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    if (shown.size() > 100) {
        shown = shown.substr(0, 100) + "..";
    }
    const std::string name(key);
    fail(ErrorKind::bundle, name + "=" + shown, need, name + "=" + std::string(example));
}

Record::Record(const nlohmann::json& object, std::string place, std::initializer_list<std::string_view> required,
               std::initializer_list<std::string_view> optional)
    : object_(object), place_(std::move(place)) {
    const std::string name = place_.substr(0, place_.size() - (place_.empty() ? 0 : 1));  // without the dot
    check_value(object.is_object(), name.empty() ? "manifest" : name, object, "names with values", "{..}");
    for (const std::string_view key : required) {
        if (!has(key)) {
            fail(ErrorKind::bundle, (name.empty() ? "it" : name) + " lacks " + std::string(key), "the keys " + join(required),
                 "export the bundle again");
        }
    }
    for (const auto& [key, value] : object.items()) {
        const auto is_key = [&](std::string_view known) { return known == key; };
        if (std::none_of(required.begin(), required.end(), is_key) &&
            std::none_of(optional.begin(), optional.end(), is_key)) {
            fail(ErrorKind::bundle, place_ + key + " is no known key", "the keys of this release",
                 "export the bundle again");
        }
    }
}

bool Record::has(std::string_view key) const { return object_.contains(key); }

const nlohmann::json& Record::at(std::string_view key) const { return object_.at(std::string(key)); }

std::string Record::read_name(std::string_view key, std::string_view example) const {
    const nlohmann::json& value = at(key);
    const bool is_right = value.is_string() && !value.get_ref<const std::string&>().empty();
    check_value(is_right, place_ + std::string(key), value, "a name", example);
    return value.get<std::string>();
}

std::string Record::read_choice(std::string_view key, std::initializer_list<std::string_view> known,
                                std::string_view usual) const {
    if (!has(key)) {
        return std::string(usual);
    }
    const nlohmann::json& value = at(key);
    const bool is_right =
        value.is_string() && std::find(known.begin(), known.end(), value.get<std::string>()) != known.end();
    check_value(is_right, place_ + std::string(key), value, "one of " + join(known), usual);
    return value.get<std::string>();
}

std::vector<std::string> Record::read_names(std::string_view key, std::size_t least, std::string_view example) const {
    const nlohmann::json& list = read_list(key);
    std::vector<std::string> names;
    bool is_right = list.size() >= least;
    for (const nlohmann::json& value : list) {
        is_right = is_right && value.is_string() && !value.get_ref<const std::string&>().empty() &&
                   std::find(names.begin(), names.end(), value.get<std::string>()) == names.end();
        if (is_right) {
            names.push_back(value.get<std::string>());
        }
    }
    check_value(is_right, place_ + std::string(key), list,
                "different names, at least " + std::to_string(least), example);
    return names;
}

double Record::read_share(std::string_view key, double usual) const {
    if (!has(key)) {
        return usual;
    }
    const nlohmann::json& value = at(key);
    const bool is_right = value.is_number() && value.get<double>() > 0.0 && value.get<double>() < 1.0;
    check_value(is_right, place_ + std::string(key), value, "a number between 0 and 1", "0.5");
    return value.get<double>();
}

int Record::read_whole(std::string_view key, int least, int usual) const {
    if (!has(key)) {
        return usual;
    }
    const nlohmann::json& value = at(key);
    const bool is_right = value.is_number_integer() && value >= least && value <= largest_size;
    check_value(is_right, place_ + std::string(key), value,
                "a whole number from " + std::to_string(least) + " to " + std::to_string(largest_size),
                std::to_string(usual));
    return value.get<int>();
}

const nlohmann::json& Record::read_list(std::string_view key) const {
    const nlohmann::json& value = at(key);
    check_value(value.is_array(), place_ + std::string(key), value, "a list", "[..]");
    return value;
}

}  // namespace cellvision
