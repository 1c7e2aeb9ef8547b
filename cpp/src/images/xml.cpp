#include "images/xml.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdint>

namespace cellvision::io {

namespace {

constexpr int deepest = 64;

void append_utf8(std::string& out, std::uint32_t code) {
    const auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (code < 0x80) {
        put(code);
    } else if (code < 0x800) {
        put(0xC0 | code >> 6);
        put(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        put(0xE0 | code >> 12);
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    } else {
        put(0xF0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3F));
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    }
}

/// A recursive descent over the text; `ok` goes false at the first fault and stays so.
class Parser {
public:
    explicit Parser(std::string_view text) : text_(text) {}

    std::optional<XmlElement> parse() {
        if (text_.starts_with("\xEF\xBB\xBF")) {
            at_ = 3;
        }
        skip_between();
        XmlElement root = parse_element(0);
        skip_between();
        return ok_ && at_ == text_.size() ? std::optional(std::move(root)) : std::nullopt;
    }

private:
    [[nodiscard]] bool is_at(std::string_view wanted) const { return text_.substr(at_).starts_with(wanted); }
    [[nodiscard]] char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    void skip_spaces() {
        while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0) {
            ++at_;
        }
    }

    bool take(std::string_view wanted) {
        if (!ok_ || !is_at(wanted)) {
            return ok_ = false;
        }
        at_ += wanted.size();
        return true;
    }

    std::string_view take_until(std::string_view end) {
        const std::size_t found = text_.find(end, at_);
        if (found == std::string_view::npos) {
            ok_ = false;
            return {};
        }
        const std::string_view part = text_.substr(at_, found - at_);
        at_ = found + end.size();
        return part;
    }

    /// Comments, processing instructions and spaces. A document type could declare entities and is a fault.
    void skip_between() {
        for (skip_spaces(); ok_; skip_spaces()) {
            if (is_at("<?")) {
                take_until("?>");
            } else if (is_at("<!--")) {
                take_until("-->");
            } else {
                return;
            }
        }
    }

    std::string parse_name() {
        const std::size_t start = at_;
        while (at_ < text_.size() && std::string_view(" \t\r\n=/>'\"<").find(text_[at_]) == std::string_view::npos) {
            ++at_;
        }
        std::string_view name = text_.substr(start, at_ - start);
        ok_ = ok_ && !name.empty();
        name.remove_prefix(name.find(':') == std::string_view::npos ? 0 : name.find(':') + 1);
        return std::string(name);
    }

    std::string resolve(std::string_view raw) {
        std::string out;
        for (std::size_t i = 0; i < raw.size(); ++i) {
            if (raw[i] != '&') {
                out.push_back(raw[i]);
                continue;
            }
            const std::size_t end = raw.find(';', i);
            if (end == std::string_view::npos) {
                ok_ = false;
                return out;
            }
            append_entity(out, raw.substr(i + 1, end - i - 1));
            i = end;
        }
        return out;
    }

    void append_entity(std::string& out, std::string_view name) {
        constexpr std::pair<std::string_view, char> known[] = {
            {"lt", '<'}, {"gt", '>'}, {"amp", '&'}, {"quot", '"'}, {"apos", '\''}};
        for (const auto& [entity, letter] : known) {
            if (name == entity) {
                out.push_back(letter);
                return;
            }
        }
        const bool is_hex = name.starts_with("#x");
        const std::string_view digits = name.substr(name.empty() ? 0 : is_hex ? 2 : 1);
        std::uint32_t code = 0;
        const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), code, is_hex ? 16 : 10);
        const bool is_number = name.starts_with("#") && !digits.empty() && result.ec == std::errc() &&
                               result.ptr == digits.data() + digits.size();
        if (!is_number || code == 0 || code > 0x10FFFF) {
            ok_ = false;
            return;
        }
        append_utf8(out, code);
    }

    void parse_attributes(XmlElement& element) {
        for (skip_spaces(); ok_ && peek() != '>' && peek() != '/'; skip_spaces()) {
            std::string name = parse_name();
            skip_spaces();
            take("=");
            skip_spaces();
            const std::string quote(1, peek());
            if (quote != "\"" && quote != "'") {
                ok_ = false;
                return;
            }
            take(quote);
            element.attributes.emplace_back(std::move(name), resolve(take_until(quote)));
        }
    }

    XmlElement parse_element(int depth) {
        XmlElement element;
        if (depth > deepest || !take("<")) {
            ok_ = false;
            return element;
        }
        element.name = parse_name();
        parse_attributes(element);
        if (ok_ && is_at("/>")) {
            take("/>");
            return element;
        }
        take(">");
        while (ok_ && !is_at("</")) {
            parse_content(element, depth);
        }
        take("</");
        ok_ = parse_name() == element.name && ok_;
        skip_spaces();
        take(">");
        return element;
    }

    void parse_content(XmlElement& element, int depth) {
        if (at_ >= text_.size()) {
            ok_ = false;
        } else if (is_at("<!--")) {
            take_until("-->");
        } else if (is_at("<![CDATA[")) {
            take("<![CDATA[");
            element.text.append(take_until("]]>"));
        } else if (is_at("<?")) {
            take_until("?>");
        } else if (peek() == '<') {
            element.children.push_back(parse_element(depth + 1));
        } else {
            const std::size_t end = std::min(text_.find('<', at_), text_.size());
            element.text.append(resolve(text_.substr(at_, end - at_)));
            at_ = end;
        }
    }

    std::string_view text_;
    std::size_t at_ = 0;
    bool ok_ = true;
};

}  // namespace

std::optional<std::string> XmlElement::find(std::string_view attribute) const {
    for (const auto& [key, value] : attributes) {
        if (key == attribute) {
            return value;
        }
    }
    return std::nullopt;
}

const XmlElement* XmlElement::find_first(std::string_view wanted) const {
    if (name == wanted) {
        return this;
    }
    for (const XmlElement& child : children) {
        if (const XmlElement* found = child.find_first(wanted)) {
            return found;
        }
    }
    return nullptr;
}

std::optional<XmlElement> parse_xml(std::string_view text) { return Parser(text).parse(); }

}  // namespace cellvision::io
