#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace cellvision {

/// What kind of thing is wrong; the same kinds as the Python package's exceptions.
enum class ErrorKind {
    config,  ///< a setting is missing, unknown or out of range
    data,    ///< a file or an image cannot be used as it is
    shape,   ///< two arrays, or an array and a net, do not fit together
    bundle,  ///< a bundle is incomplete, altered, or does not suit the request
};

/// Every error that a user, a file or a setting can cause. Its text is one sentence in three parts, fit to be shown.
class Error : public std::runtime_error {
public:
    Error(ErrorKind kind, const std::string& text) : std::runtime_error(text), kind_(kind) {}

    [[nodiscard]] ErrorKind kind() const noexcept { return kind_; }

private:
    ErrorKind kind_;
};

/// One sentence "got; need ..; try: .." for an error text.
[[nodiscard]] std::string explain(std::string_view got, std::string_view need, std::string_view hint);

/// Throws Error with the text of `explain`.
[[noreturn]] void fail(ErrorKind kind, std::string_view got, std::string_view need, std::string_view hint);

}  // namespace cellvision
