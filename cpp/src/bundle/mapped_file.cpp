#include "bundle/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cellvision/error.hpp"

namespace cellvision {

MappedFile::MappedFile(const std::filesystem::path& file) {
    const int descriptor = open(file.c_str(), O_RDONLY | O_CLOEXEC);
    void* place = MAP_FAILED;
    std::size_t size = 0;
    if (descriptor >= 0) {
        struct stat facts {};
        if (fstat(descriptor, &facts) == 0 && facts.st_size > 0) {
            size = static_cast<std::size_t>(facts.st_size);
            place = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        }
        close(descriptor);
    }
    if (place == MAP_FAILED) {
        fail(ErrorKind::bundle, file.string() + " cannot be read or is empty", "a file", "check its path and rights");
    }
    bytes_ = {static_cast<const std::byte*>(place), size};
}

MappedFile::~MappedFile() { munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size()); }

}  // namespace cellvision
