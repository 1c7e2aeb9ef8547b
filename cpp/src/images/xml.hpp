#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cellvision::io {

/// One element of an XML text. Prefixes of namespaces are left out of its name.
struct XmlElement {
    std::string name;
    std::vector<std::pair<std::string, std::string>> attributes;
    std::vector<XmlElement> children;
    std::string text;  ///< of its own, that of its children left out

    /// The value of an attribute, or nothing.
    [[nodiscard]] std::optional<std::string> find(std::string_view attribute) const;
    /// This element or the first below it, in the order of the text, of that name; null where there is none.
    [[nodiscard]] const XmlElement* find_first(std::string_view wanted) const;
};

/// The root element, or nothing where the text is not well formed or declares entities of its own.
[[nodiscard]] std::optional<XmlElement> parse_xml(std::string_view text);

}  // namespace cellvision::io
