#include "graphs/ort_library.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <initializer_list>
#include <mutex>
#include <new>

#include "cellvision/error.hpp"
#include "graphs/tensor_pool.hpp"

namespace cellvision {
namespace {

#ifdef __APPLE__
constexpr std::initializer_list<const char*> usual_names = {"libonnxruntime.1.dylib", "libonnxruntime.dylib"};
#else
constexpr std::initializer_list<const char*> usual_names = {"libonnxruntime.so.1", "libonnxruntime.so"};
#endif

constexpr const char* hint = "CELLVISION_ORT_LIBRARY=/path/to/libonnxruntime.so, of a Python wheel or a release";

/// tensor_pool() as ONNX Runtime calls it.
struct PoolAllocator : OrtAllocator {
    PoolAllocator() : OrtAllocator{} {
        version = ORT_API_VERSION;
        Alloc = Reserve = [](OrtAllocator*, std::size_t bytes) { return allocate(bytes); };
        Free = [](OrtAllocator*, void* block) { tensor_pool().release(block); };
        Info = [](const OrtAllocator* self) -> const OrtMemoryInfo* {
            return static_cast<const PoolAllocator*>(self)->memory_;
        };
    }

private:
    /// ONNX Runtime does not look whether there is a block, but makes an error of what is thrown.
    static void* allocate(std::size_t bytes) {
        void* block = tensor_pool().allocate(bytes);
        if (block == nullptr) {
            throw std::bad_alloc();
        }
        return block;
    }

    Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
};

struct Loaded {
    std::mutex mutex;
    std::filesystem::path asked;
    const OrtApiBase* base = nullptr;
};

Loaded& loaded() {
    static Loaded one;
    return one;
}

/// The library stays loaded until the process ends: its threads may outlive every session.
void* open_library(const std::filesystem::path& asked) {
    if (!asked.empty()) {
        if (void* handle = dlopen(asked.c_str(), RTLD_NOW | RTLD_LOCAL)) {
            return handle;
        }
        fail(ErrorKind::config, "ONNX Runtime does not load (" + std::string(dlerror()) + ")",
             "its library, for this machine", hint);
    }
    for (const char* name : usual_names) {
        if (void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
            return handle;
        }
    }
    fail(ErrorKind::config, "ONNX Runtime was not found (" + std::string(dlerror()) + ")",
         "its library, release 1." + std::to_string(ORT_API_VERSION) + " or newer", hint);
}

const OrtApiBase* find_base(const std::filesystem::path& asked) {
    void* entry = dlsym(open_library(asked), "OrtGetApiBase");
    if (entry == nullptr) {
        fail(ErrorKind::config, asked.string() + " is not ONNX Runtime", "its library", hint);
    }
    const OrtApiBase* base = reinterpret_cast<const OrtApiBase* (*)() noexcept>(entry)();
    const OrtApi* api = base->GetApi(ORT_API_VERSION);
    if (api == nullptr) {
        fail(ErrorKind::config, "ONNX Runtime " + std::string(base->GetVersionString()) + " is too old",
             "release 1." + std::to_string(ORT_API_VERSION) + " or newer", hint);
    }
    Ort::InitApi(api);
    return base;
}

}  // namespace

void load_ort(const std::filesystem::path& library) {
    const char* named = std::getenv("CELLVISION_ORT_LIBRARY");
    const std::filesystem::path asked = library.empty() && named != nullptr ? std::filesystem::path(named) : library;
    Loaded& one = loaded();
    const std::lock_guard lock(one.mutex);
    if (one.base == nullptr) {
        one.base = find_base(asked);
        one.asked = asked;
    } else if (!asked.empty() && asked != one.asked) {
        const std::string held = one.asked.empty() ? "the system" : one.asked.string();
        fail(ErrorKind::config, "ONNX Runtime was loaded from " + held + " and " + asked.string() + " is asked for",
             "one library per process", "the same ort_library everywhere");
    }
}

std::string find_ort_version() {
    const OrtApiBase* base = loaded().base;
    return base == nullptr ? "" : base->GetVersionString();
}

Ort::Env& ort_environment() {
    static Ort::Env environment = [] {
        Ort::Env made(ORT_LOGGING_LEVEL_FATAL, "cellvision");  // its errors become ours
        static PoolAllocator& allocator = *new PoolAllocator;
        Ort::ThrowOnError(Ort::GetApi().RegisterAllocator(made, &allocator));
        return made;
    }();
    return environment;
}

}  // namespace cellvision
