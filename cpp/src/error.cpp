#include "cellvision/error.hpp"

namespace cellvision {

std::string explain(std::string_view got, std::string_view need, std::string_view hint) {
    std::string text(got);
    text.append("; need ").append(need).append("; try: ").append(hint);
    return text;
}

void fail(ErrorKind kind, std::string_view got, std::string_view need, std::string_view hint) {
    throw Error(kind, explain(got, need, hint));
}

}  // namespace cellvision
