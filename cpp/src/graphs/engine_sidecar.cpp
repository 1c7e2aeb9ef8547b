#include "graphs/engine_sidecar.hpp"

#include <array>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cellvision/error.hpp"
#include "cellvision/manifest.hpp"

namespace cellvision {
namespace {

using nlohmann::json;

constexpr int format_version = 1;

[[noreturn]] void fail_unusable(const std::filesystem::path& path, const std::string& why, const std::string& need) {
    fail(ErrorKind::bundle, path.string() + " " + why, need, "build the engine again, python export.py +trt=...");
}

json load_sidecar(const std::filesystem::path& engine) {
    const std::filesystem::path path = engine.string() + ".json";
    std::ifstream stream(path, std::ios::binary);
    if (!stream) {
        fail_unusable(path, "is not there", "the file that was written with " + engine.filename().string());
    }
    json sidecar = json::parse(stream, nullptr, false);
    const auto has_text = [](const json& record, const char* key) {
        return record.is_object() && record.contains(key) && record[key].is_string();
    };
    const bool is_right = has_text(sidecar, "format") && sidecar["format"] == "cellvision-engine" &&
                          sidecar.value("format_version", json()) == format_version && has_text(sidecar, "library") &&
                          has_text(sidecar, "library_version") && has_text(sidecar, "engine_sha256") &&
                          sidecar.contains("gpu") &&
                          (sidecar["gpu"].is_null() ||
                           (has_text(sidecar["gpu"], "name") && has_text(sidecar["gpu"], "compute_capability")));
    if (!is_right) {
        fail_unusable(path, "is not a sidecar of this release", "what export wrote");
    }
    return sidecar;
}

std::string describe_gpu(const std::string& name, const std::string& compute_capability) {
    return name + " (compute capability " + compute_capability + ")";
}

}  // namespace

void check_engine_sidecar(const std::filesystem::path& engine, const EngineHost& host) {
    const json sidecar = load_sidecar(engine);
    const json& gpu = sidecar["gpu"];
    struct Fact {
        std::string what, built, here;
    };
    const std::array<Fact, 4> facts{
        {{"library", sidecar["library"], "tensorrt"},
         {"engine file", sidecar["engine_sha256"], compute_sha256(engine)},
         {"tensorrt version", sidecar["library_version"], host.library_version},
         {"GPU", gpu.is_null() ? "none" : describe_gpu(gpu["name"], gpu["compute_capability"]),
          describe_gpu(host.gpu, host.compute_capability)}}};
    for (const Fact& fact : facts) {
        if (fact.built != fact.here) {
            fail(ErrorKind::bundle, engine.string() + ": its " + fact.what + " is " + fact.here.substr(0, 60),
                 fact.built.substr(0, 60) + ", with which it was built",
                 "build the engine again here, python export.py +trt=...");
        }
    }
}

}  // namespace cellvision
